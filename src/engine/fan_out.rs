//! Waking the live readers of a stream, a few at a time.
//!
//! Each reader that is woken costs its core a system call. A thousand of them in the runtime's queue at one time would
//! keep every request behind them waiting, once for each time that the request has to pass the queue: the appends that
//! feed the readers among them. So a core wakes some, lets everything else have its turn, and wakes the next. Whoever
//! comes later in that order finds more to take, in one write.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// Readers that one turn wakes: about as many as what else there is to do may be kept waiting by. Fewer, and looking at the
/// sockets in between takes its part of the time.
const WOKEN_PER_TURN: usize = 16;

/// Readers that wait for news of a stream.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    wakers: Slab<Waker>,
    /// Number of times that all were called, so that a place in the list is known to be of an earlier one.
    calls: u32,
}

/// A reader's place in [`Waiting`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Key in the list and 1, so that no place takes no room.
    number: NonZeroU32,
    calls: u32,
}

impl Place {
    fn key(self) -> usize {
        self.number.get() as usize - 1
    }
}

impl Waiting {
    /// Has the task of `cx` woken with the next call. `place` is what this reader got the last time.
    pub(super) fn enter(&mut self, place: Option<Place>, cx: &Context<'_>) -> Place {
        if let Some(place) = place
            && let Some(waker) = self.entry(place)
        {
            waker.clone_from(cx.waker());
            return place;
        }
        let key = self.wakers.insert(cx.waker().clone());
        let number = u32::try_from(key + 1).ok().and_then(NonZeroU32::new);
        Place { number: number.expect("there are fewer readers than that"), calls: self.calls }
    }

    /// This reader waits no longer.
    pub(super) fn leave(&mut self, place: Place) {
        if self.entry(place).is_some() {
            self.wakers.remove(place.key());
        }
    }

    fn entry(&mut self, place: Place) -> Option<&mut Waker> {
        if place.calls == self.calls { self.wakers.get_mut(place.key()) } else { None }
    }

    /// Everybody who waits, to be woken.
    pub(super) fn call(&mut self) -> Slab<Waker> {
        self.calls = self.calls.wrapping_add(1);
        let room = self.wakers.len();
        std::mem::replace(&mut self.wakers, Slab::with_capacity(room))
    }
}

/// Tasks of one core that are to be woken.
#[derive(Default)]
struct Turns {
    due: VecDeque<Waker>,
    /// The task that wakes them; `None` on threads that are no cores.
    pump: Option<Waker>,
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

/// Wakes tasks of the current thread in turns, the first at once. On a thread that is no core: all at once.
pub(super) fn wake_in_turns(called: Slab<Waker>) {
    let mut called = called.into_iter().map(|(_, waker)| waker);
    let may_begin = TURNS.with_borrow(|turns| turns.pump.is_none() || turns.due.is_empty());
    if may_begin {
        called.by_ref().take(WOKEN_PER_TURN).for_each(Waker::wake);
    }
    let (pump, left) = TURNS.with_borrow_mut(|turns| match &turns.pump {
        Some(pump) => {
            turns.due.extend(called);
            ((!turns.due.is_empty()).then(|| pump.clone()), None)
        }
        None => (None, Some(called)),
    });
    left.into_iter().flatten().for_each(Waker::wake);
    if let Some(pump) = pump {
        pump.wake();
    }
}

/// Serves the turns of the current thread, for as long as it is polled.
pub(super) async fn turn_by_turn() {
    let mut woken = Vec::with_capacity(WOKEN_PER_TURN);
    loop {
        let is_more = poll_fn(|cx| TURNS.with_borrow_mut(|turns| turns.take(&mut woken, cx))).await;
        woken.drain(..).for_each(Waker::wake);
        if is_more {
            // Behind those, and behind what the sockets have by then: the runtime looks at them before this goes on, however
            // many tasks it would poll otherwise until it does.
            tokio::task::yield_now().await;
        }
    }
}

impl Turns {
    /// Moves the tasks of one turn to `woken` as soon as there are any. Whether there are more.
    fn take(&mut self, woken: &mut Vec<Waker>, cx: &Context<'_>) -> Poll<bool> {
        if self.pump.as_ref().is_none_or(|pump| !pump.will_wake(cx.waker())) {
            self.pump = Some(cx.waker().clone());
        }
        if self.due.is_empty() {
            return Poll::Pending;
        }
        let count = self.due.len().min(WOKEN_PER_TURN);
        woken.extend(self.due.drain(..count));
        if self.due.is_empty() {
            self.due.shrink_to(WOKEN_PER_TURN);
        }
        Poll::Ready(!self.due.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn waiting(count: &Arc<Count>, readers: usize) -> Waiting {
        let waker = Waker::from(Arc::clone(count));
        let mut waiting = Waiting::default();
        for _ in 0..readers {
            waiting.enter(None, &Context::from_waker(&waker));
        }
        waiting
    }

    #[test]
    fn who_waits_is_called_once_and_who_left_is_not() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let wakers = [&first, &second].map(|count| Waker::from(Arc::clone(count)));
        let mut waiting = Waiting::default();
        let places = [0, 1].map(|reader| waiting.enter(None, &Context::from_waker(&wakers[reader])));
        // Waiting again is waiting still.
        waiting.enter(Some(places[0]), &Context::from_waker(&wakers[0]));
        waiting.leave(places[1]);
        wake_in_turns(waiting.call());
        wake_in_turns(waiting.call());
        assert_eq!((first.get(), second.get()), (1, 0));
        // A place of an earlier call is nobody's, whoever has its number now.
        waiting.enter(Some(places[1]), &Context::from_waker(&wakers[1]));
        waiting.leave(places[0]);
        wake_in_turns(waiting.call());
        assert_eq!((first.get(), second.get()), (1, 1));
    }

    #[test]
    fn without_a_pump_all_are_woken_at_once() {
        let count = Arc::new(Count::default());
        wake_in_turns(waiting(&count, 3 * WOKEN_PER_TURN).call());
        assert_eq!(count.get(), 3 * WOKEN_PER_TURN);
    }

    #[test]
    fn a_pump_wakes_some_with_each_turn_in_their_order_and_all_in_the_end() {
        let pump_woken = Arc::new(Count::default());
        let pump_waker = Waker::from(Arc::clone(&pump_woken));
        let mut pump = std::pin::pin!(turn_by_turn());
        let mut turn = || assert!(pump.as_mut().poll(&mut Context::from_waker(&pump_waker)).is_pending());
        turn();
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        wake_in_turns(waiting(&first, 2 * WOKEN_PER_TURN + 1).call());
        assert_eq!((first.get(), pump_woken.get()), (WOKEN_PER_TURN, 1));
        // Behind those who were called before.
        wake_in_turns(waiting(&second, 1).call());
        assert_eq!(second.get(), 0);
        turn();
        assert_eq!((first.get(), second.get()), (2 * WOKEN_PER_TURN, 0));
        turn();
        assert_eq!((first.get(), second.get()), (2 * WOKEN_PER_TURN + 1, 1));
        wake_in_turns(waiting(&second, 1).call());
        assert_eq!(second.get(), 2);
        TURNS.take();
    }
}
