//! Changes on disks that fail: whatever came of one, the model has to be told.

use super::*;

impl Run {
    pub(super) fn broken(&mut self, after_calls: u64, power: bool, change: &Change) {
        let Below::Disks(disks) = &self.below else { return };
        let disks = disks.clone();
        for shard in 0..self.setting.shards {
            disks.shard(shard).arm(Fault { after: after_calls, lasting: power, ..Fault::next(Calls::All) });
        }
        let before = self.model.clone();
        let (answer, expected) = self.attempt(change);
        if power {
            self.note("the power is cut");
            disks.cut_power();
            self.wait_for(self.store.shutdown());
            self.store = open(&self.setting, &self.below, &self.clock);
        } else {
            disks.heal();
            self.wait_until_writable();
        }
        self.note(format!("{answer:?}"));
        self.model.reopened();
        if let Some(answer) = answer {
            assert_eq!(answer, expected);
        } else {
            let mut before = before;
            before.reopened();
            let mut after = std::mem::replace(&mut self.model, before);
            if self.has_happened(&after) {
                std::mem::swap(&mut self.model, &mut after);
                self.note("it happened");
            }
            self.model.blur(&after);
        }
        self.wait_until_settled();
        self.wait_until_cut();
        self.check_everything();
    }

    /// Does it, whatever comes of it: `None` = unknown.
    fn attempt(&mut self, change: &Change) -> (Option<Answer<()>>, Answer<()>) {
        fn certain<T, E: Into<Trouble>>(answer: Result<T, E>) -> Option<Answer<()>> {
            match answer.map_err(Into::into) {
                Ok(_) => Some(Ok(())),
                Err(Trouble::Refused(refusal)) => Some(Err(refusal)),
                Err(Trouble::Unavailable(_)) => None,
            }
        }
        match change {
            Change::Create(plan) => {
                let request = plan.resolve(&self.model, START_MS);
                self.note(("broken", &request));
                let answer = certain(self.wait_for(self.store.create(request.for_store())));
                (answer, self.model.create(&request).map(drop))
            }
            Change::Append(plan) => {
                let request = plan.resolve(&self.model);
                self.note(("broken", &request));
                let answer = certain(self.wait_for(self.store.append(request.for_store())));
                (answer, self.model.append(&request).map(drop))
            }
            Change::Delete(name) => {
                self.note(("broken delete", name));
                let answer = certain(self.wait_for(self.store.delete(stream_name(*name))));
                (answer, self.model.delete(*name))
            }
        }
    }

    /// Whether the store looks like this model, and not like the present one.
    fn has_happened(&self, after: &Model) -> bool {
        (0..NAMES).any(|name| {
            let visible = |stream: &Stream| (stream.uid, stream.tail(), stream.closed.is_some());
            let [then, now] = [after, &self.model].map(|model| model.readable(name).map(visible));
            if then == now || (then.is_err() && now.is_err()) {
                // Nothing, or what follows from a change elsewhere, and is seen only later.
                return false;
            }
            let there = certain(self.wait_for(self.store.head(stream_name(name))));
            match (there, then) {
                (Ok(there), Ok((_, tail, closed))) => (there.tail, there.closed) == (tail, closed),
                (there, then) => there.is_err() && then.is_err(),
            }
        })
    }

    /// Waits until every shard commits again: what was submitted before has failed or not by then.
    pub(super) fn wait_until_writable(&mut self) {
        for probe in self.probes() {
            let (create, append) = (plain_creation(probe), plain_append(probe));
            let deadline = Instant::now() + PATIENCE;
            loop {
                let created = self.wait_for(self.store.create(create.for_store())).is_ok();
                if created && self.wait_for(self.store.append(append.for_store())).is_ok() {
                    break;
                }
                assert!(Instant::now() < deadline, "the shard takes writes again");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(self.store.health().is_ready());
    }

    /// A name on each shard.
    pub(super) fn probes(&self) -> Vec<u8> {
        let shards = self.setting.shards;
        (0..shards)
            .map(|shard| {
                let is_there = |name: &u8| shard_of(stream_name(*name).as_str(), shards) == shard;
                (PROBES..=u8::MAX).find(is_there).expect("among so many names there is one on each shard")
            })
            .collect()
    }
}
