//! Waking the live readers of a stream, a few at a time.
//!
//! Each reader that is woken costs its core a system call. A thousand of them in the runtime's queue at one time would
//! keep every request behind them waiting, once for each time that the request has to pass the queue: the appends that
//! feed the readers among them. So a core wakes some, lets everything else have its turn, and wakes the next. Whoever
//! comes later in that order finds more to take, in one write.
//!
//! When all have been woken who waited at the beginning, that was a *pass*. A writer that is answered during it would have its
//! next append among the deliveries of the last one, and all readers would be written to once more for each append, which is all
//! that a core can do then. So a core rests after a pass, for some times as long as that took, and wakes nobody in turns. What
//! comes meanwhile is delivered together by the next pass. A pass that comes later than that waits for nothing, and after one
//! that is over quickly there is no rest.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

/// Readers that one turn wakes: about as many as what else there is to do may be kept waiting by. Fewer, and looking at the
/// sockets in between takes its part of the time.
const WOKEN_PER_TURN: usize = 16;
/// Rest after a pass, as a multiple of what that took: a core gives so many times as much to all else.
const REST_FACTOR: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(15);
/// And for each of its readers, which takes a third of that: a core that has other work is not to let a few wait for that.
const REST_MAX_EACH: Duration = Duration::from_micros(30);
/// The runtime's timers are no finer.
const TIMER_STEP: Duration = Duration::from_millis(1);

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
    /// Those of the next pass.
    due: VecDeque<Waker>,
    /// Those that are left of the pass under way.
    passing: VecDeque<Waker>,
    rests: bool,
    /// The task that wakes them; `None` on threads that are no cores.
    pump: Option<Waker>,
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

/// Wakes tasks of the current thread: a few at once, many in turns. On a thread that is no core: all at once.
pub(super) fn wake_in_turns(called: Slab<Waker>) {
    let are_few = called.len() <= WOKEN_PER_TURN;
    let mut called = called.into_iter().map(|(_, waker)| waker);
    if are_few || TURNS.with_borrow(|turns| turns.pump.is_none()) {
        return called.for_each(Waker::wake);
    }
    if TURNS.with_borrow(Turns::is_idle) {
        called.by_ref().take(WOKEN_PER_TURN).for_each(Waker::wake);
    }
    let pump = TURNS.with_borrow_mut(|turns| {
        turns.due.extend(called);
        turns.pump.clone()
    });
    pump.into_iter().for_each(Waker::wake);
}

/// Serves the turns of the current thread, for as long as it is polled.
pub(super) async fn turn_by_turn() {
    let mut woken = Vec::with_capacity(WOKEN_PER_TURN);
    loop {
        poll_fn(|cx| TURNS.with_borrow_mut(|turns| turns.poll_pass(cx))).await;
        let begun = Instant::now();
        let readers = TURNS.with_borrow(|turns| turns.passing.len());
        while TURNS.with_borrow_mut(|turns| turns.take(&mut woken)) {
            woken.drain(..).for_each(Waker::wake);
            // Behind those, and behind what the sockets have by then: the runtime looks at them before this goes on, however
            // many tasks it would poll otherwise until it does.
            tokio::task::yield_now().await;
        }
        if let Some(rest) = rest_after(begun.elapsed(), readers) {
            TURNS.with_borrow_mut(|turns| turns.rests = true);
            tokio::time::sleep(rest).await;
            TURNS.with_borrow_mut(|turns| turns.rests = false);
        }
    }
}

/// How long nobody is woken in turns after a pass over so many that took so long. `None` = less than the runtime can tell.
fn rest_after(took: Duration, readers: usize) -> Option<Duration> {
    let of_readers = REST_MAX_EACH.saturating_mul(u32::try_from(readers).unwrap_or(u32::MAX));
    let rest = took.saturating_mul(REST_FACTOR).min(REST_MAX).min(of_readers);
    (rest >= TIMER_STEP).then_some(rest)
}

impl Turns {
    /// Nobody waits to be woken, and nobody need wait for that.
    fn is_idle(&self) -> bool {
        !self.rests && self.due.is_empty() && self.passing.is_empty()
    }

    /// Begins a pass as soon as there is somebody to wake.
    fn poll_pass(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.pump.as_ref().is_none_or(|pump| !pump.will_wake(cx.waker())) {
            self.pump = Some(cx.waker().clone());
        }
        if self.due.is_empty() {
            return Poll::Pending;
        }
        self.passing = std::mem::take(&mut self.due);
        Poll::Ready(())
    }

    /// Moves the tasks of one turn to `woken`. Whether there were any.
    fn take(&mut self, woken: &mut Vec<Waker>) -> bool {
        let count = self.passing.len().min(WOKEN_PER_TURN);
        woken.extend(self.passing.drain(..count));
        if self.passing.is_empty() {
            self.passing = VecDeque::new();
        }
        count > 0
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
    fn the_longer_a_pass_the_longer_the_rest_up_to_a_limit() {
        let ms = Duration::from_millis;
        assert_eq!(rest_after(Duration::from_micros(300), 1000), None);
        assert_eq!(rest_after(ms(2), 1000), Some(ms(6)));
        assert_eq!(rest_after(ms(1000), 1000), Some(REST_MAX));
        assert_eq!(rest_after(ms(1000), 100), Some(ms(3)), "most of that time went elsewhere");
        assert_eq!(rest_after(ms(1000), 20), None);
    }

    /// Passes may be long on a slow machine, and rests take a runtime's timers.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_pump_wakes_some_with_each_turn_in_their_order_and_all_in_the_end() {
        let runtime = runtime();
        let _entered = runtime.enter();
        let pump_woken = Arc::new(Count::default());
        let pump_waker = Waker::from(Arc::clone(&pump_woken));
        let mut pump = std::pin::pin!(turn_by_turn());
        let mut turn = || assert!(pump.as_mut().poll(&mut Context::from_waker(&pump_waker)).is_pending());
        turn();
        let [first, second, few] = std::array::from_fn(|_| Arc::new(Count::default()));
        wake_in_turns(waiting(&first, 3 * WOKEN_PER_TURN).call());
        assert_eq!((first.get(), pump_woken.get()), (WOKEN_PER_TURN, 1));
        // Behind those who were called before.
        wake_in_turns(waiting(&second, WOKEN_PER_TURN + 1).call());
        assert_eq!(second.get(), 0);
        wake_in_turns(waiting(&few, WOKEN_PER_TURN).call());
        assert_eq!(few.get(), WOKEN_PER_TURN, "a few wait for nobody");
        for expected in [(2, 0), (3, 0), (3, WOKEN_PER_TURN), (3, WOKEN_PER_TURN + 1)] {
            turn();
            assert_eq!((first.get() / WOKEN_PER_TURN, second.get()), expected);
        }
        TURNS.take();
    }

    #[test]
    fn who_is_called_during_a_pass_or_the_rest_after_it_is_woken_by_the_next_one() {
        /// Takes long enough for a rest.
        struct Slow(Arc<Count>);

        impl Wake for Slow {
            fn wake(self: Arc<Self>) {
                std::thread::sleep(TIMER_STEP);
                Arc::clone(&self.0).wake();
            }
        }

        let runtime = runtime();
        let entered = runtime.enter();
        let [slow, during, after] = std::array::from_fn(|_| Arc::new(Count::default()));
        let mut pump = Box::pin(turn_by_turn());
        let mut turn = || assert!(pump.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        turn();
        let mut list = Waiting::default();
        let waker = Waker::from(Arc::new(Slow(Arc::clone(&slow))));
        for _ in 0..=4 * WOKEN_PER_TURN {
            list.enter(None, &Context::from_waker(&waker));
        }
        wake_in_turns(list.call());
        turn();
        assert_eq!(slow.get(), 2 * WOKEN_PER_TURN);
        wake_in_turns(waiting(&during, WOKEN_PER_TURN + 1).call());
        (0..3).for_each(|_| turn());
        assert_eq!(slow.get(), 4 * WOKEN_PER_TURN + 1);
        turn();
        wake_in_turns(waiting(&after, WOKEN_PER_TURN + 1).call());
        // No timer goes on while nobody drives the runtime.
        turn();
        assert_eq!((during.get(), after.get()), (0, 0));
        drop(entered);
        runtime.block_on(async {
            let both = async {
                while during.get() + after.get() < 2 * (WOKEN_PER_TURN + 1) {
                    tokio::time::sleep(TIMER_STEP).await;
                }
            };
            tokio::select! {
                () = pump => unreachable!("it serves them for ever"),
                () = both => {}
            }
        });
        TURNS.take();
    }
}
