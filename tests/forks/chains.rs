//! Forks of forks, read from every offset.

use super::support::sse::EventStream;
use super::*;

/// A stream as it should be.
#[derive(Clone, Debug)]
struct Expected {
    name: String,
    is_json: bool,
    /// As positions count it: JSON messages each with a comma behind them.
    stored: Vec<u8>,
}

impl Expected {
    /// Positions at which a read may begin.
    fn is_boundary(&self, position: usize) -> bool {
        // The messages of these tests have no commas in them.
        !self.is_json || position == 0 || self.stored[position - 1] == b','
    }

    /// The body of a page with these stored bytes.
    fn body(&self, stored: &[u8]) -> Vec<u8> {
        match stored {
            _ if !self.is_json => stored.to_vec(),
            [] => b"[]".to_vec(),
            stored => [b"[", &stored[..stored.len() - 1], b"]"].concat(),
        }
    }
}

/// A family of streams, and what each of them should hold.
struct Family {
    /// First segment of the names.
    prefix: String,
    content_type: (&'static str, &'static str),
    members: Vec<Expected>,
}

impl Family {
    fn new(prefix: &str, is_json: bool) -> Self {
        let content_type = if is_json { JSON } else { TEXT };
        Self { prefix: prefix.to_owned(), content_type, members: Vec::new() }
    }

    fn is_json(&self) -> bool {
        self.content_type == JSON
    }

    /// A body of letters, or of JSON strings of one letter each, and its stored form.
    fn content(&self, letters: &str) -> (Vec<u8>, Vec<u8>) {
        if self.is_json() {
            let stored: String = letters.chars().map(|letter| format!("\"{letter}\",")).collect();
            (format!("[{}]", stored.trim_end_matches(',')).into_bytes(), stored.into_bytes())
        } else {
            (letters.as_bytes().to_vec(), letters.as_bytes().to_vec())
        }
    }

    fn create(&mut self, server: &mut Server, name: &str, letters: &str) {
        let (body, stored) = self.content(letters);
        let name = format!("{}/{name}", self.prefix);
        server.create(&name, &[self.content_type], body);
        self.members.push(Expected { name, is_json: self.is_json(), stored });
    }

    /// Stored bytes of a letter.
    fn width(&self) -> usize {
        if self.is_json() { 4 } else { 1 }
    }

    /// Forks the member `source` at the position of its letter number `letter`, by anchor and sub-offset.
    fn fork(&mut self, server: &mut Server, name: &str, source: usize, letter: usize, own: &str) {
        let width = self.width();
        let name = format!("{}/{name}", self.prefix);
        let source = self.members[source].clone();
        // Half of the way by offset, half by sub-offset.
        let (anchor, sub) = (letter / 2, letter - letter / 2);
        let headers = [
            (FORKED_FROM, &*path(&source.name)),
            (FORK_OFFSET, &*offset(anchor * width)),
            (SUB_OFFSET, &*sub.to_string()),
        ];
        let (body, stored) = self.content(own);
        let created = server.create(&name, &headers, if own.is_empty() { Vec::new() } else { body });
        let stored = [&source.stored[..letter * width], &stored].concat();
        assert_eq!(next_position(&created), stored.len(), "{name}");
        self.members.push(Expected { name, is_json: self.is_json(), stored });
    }

    fn append(&mut self, server: &mut Server, member: usize, letters: &str) {
        let (body, stored) = self.content(letters);
        let member = &mut self.members[member];
        server.append(&member.name, self.content_type, body);
        member.stored.extend(stored);
    }

    fn letters(&self, member: usize) -> usize {
        self.members[member].stored.len() / self.width()
    }

    fn check(&self, server: &mut Server) {
        for member in &self.members {
            check_every_offset(server, member);
        }
    }
}

/// Reads from each position to the end, and from just behind the end.
fn check_every_offset(server: &mut Server, expected: &Expected) {
    let Expected { name, stored, .. } = expected;
    let head = server.request("HEAD", name, &[], b"").expect_status(200);
    assert_eq!(next_position(&head), stored.len(), "{name}");
    for position in 0..=stored.len() {
        if !expected.is_boundary(position) {
            server.get(&format!("{name}?offset={}", offset(position))).expect_status(400);
            continue;
        }
        let mut at = position;
        loop {
            let page = server.get(&format!("{name}?offset={}", offset(at))).expect_status(200);
            let next = next_position(&page);
            assert!(expected.is_boundary(next), "{name}: {at} to {next}");
            assert_eq!(page.text().as_bytes(), expected.body(&stored[at..next]), "{name}: {at} to {next}");
            assert_eq!(
                page.header("Stream-Up-To-Date").is_some(),
                next == stored.len(),
                "{name}: {at} to {next}"
            );
            assert!(next > at || next == stored.len(), "{name}: an empty page at {at}");
            at = next;
            if next == stored.len() {
                break;
            }
        }
    }
    server.get(&format!("{name}?offset={}", offset(stored.len() + 1))).expect_status(400);
}

/// The same for live readers.
fn check_live_from_every_offset(server: &mut Server, expected: &Expected) {
    let Expected { name, stored, .. } = expected;
    for position in (0..stored.len()).filter(|position| expected.is_boundary(*position)) {
        let target = format!("{name}?offset={}", offset(position));
        let page = server.get(&format!("{target}&live=long-poll")).expect_status(200);
        let body = expected.body(&stored[position..]);
        assert_eq!(page.body, body, "{target}");
        let events = EventStream::open(server.process.origin(), &path(&format!("{target}&live=sse")), &[]);
        let mut events = events.expect("the server answers").expect("the stream can be read");
        let (kind, data) = events.next_message().expect("the response goes on").expect("there is data");
        assert_eq!((&*kind, data.as_bytes()), ("data", &*body), "{target}");
    }
    for position in (0..=stored.len()).filter(|position| !expected.is_boundary(*position)) {
        for live in ["long-poll", "sse"] {
            server.get(&format!("{name}?offset={}&live={live}", offset(position))).expect_status(400);
        }
    }
}

/// A chain of depth four with branches: forks of own data, of inherited data, at the joints and at both ends.
fn build_chain(server: &mut Server, is_json: bool) -> Family {
    let mut family = Family::new(if is_json { "json" } else { "text" }, is_json);
    family.create(server, "root", "0123456789");
    family.append(server, 0, "abcdefgh");
    family.append(server, 0, "ij");
    family.fork(server, "1-behind-two-posts", 0, 15, "FIRST");
    family.append(server, 1, "first");
    family.fork(server, "2-in-own-data", 1, 18, "SECOND");
    family.fork(server, "3-in-the-roots-data", 2, 7, "THIRD");
    family.fork(server, "4-at-the-tail", 3, 12, "FOURTH");
    family.fork(server, "3-at-the-joint", 2, 18, "JOINT");
    family.fork(server, "4-at-an-older-joint", 5, 15, "OLDER");
    family.fork(server, "5-of-nothing", 6, 0, "NOTHING");
    family.fork(server, "4-without-own-data", 5, 20, "");
    family.fork(server, "5-of-inherited-data-only", 8, 20, "ONLY");
    // What happens to a source later is no business of its forks.
    family.append(server, 0, "LATER");
    family.append(server, 2, "LATER");
    family.append(server, 8, "now its own");
    family.append(server, 4, "!");
    family
}

#[test]
fn a_chain_reads_right_from_every_offset() {
    on_each_layout(|mut server| {
        let families = [false, true].map(|is_json| build_chain(&mut server, is_json));
        server.check_over_restarts(|server| families.iter().for_each(|family| family.check(server)));
        for member in families.iter().flat_map(|family| &family.members) {
            check_live_from_every_offset(&mut server, member);
        }
    });
}

#[test]
fn a_chain_reads_right_in_pages_smaller_than_its_parts() {
    for mode in ["memory", "acid"] {
        // Two messages and a bit.
        let mut server = Server::start(mode, "5", &[("DS_LIMITS__READ_PAGE_BYTES", "9")]);
        let families = [false, true].map(|is_json| build_chain(&mut server, is_json));
        server.check_over_restarts(|server| families.iter().for_each(|family| family.check(server)));
    }
}

#[test]
fn a_chain_reads_right_when_all_but_its_ends_are_deleted() {
    on_each_layout(|mut server| {
        for is_json in [false, true] {
            let mut family = build_chain(&mut server, is_json);
            // Those that others stand on, in an order that is neither theirs nor its reverse.
            for source in [5, 0, 2, 1, 3, 8, 6] {
                server.delete(&family.members[source].name);
            }
            let sources = [0, 1, 2, 3, 5, 6, 8].map(|member| family.members[member].name.clone());
            family.members.retain(|member| !sources.contains(&member.name));
            family.append(&mut server, 0, "on");
            server.check_over_restarts(|server| {
                family.check(server);
                for source in &sources {
                    server.expect_status(source, 410);
                }
            });
        }
    });
}

#[test]
fn a_chain_reads_right_from_disk() {
    // Content leaves the RAM as soon as it is settled, and is settled as soon as the journal holds a little.
    let cold = [("DS_STORAGE__JOURNAL_BYTES", "64KiB"), ("DS_LIMITS__MAX_MEMORY_BYTES", "1")];
    for shards in ["1", "5"] {
        let mut server = Server::start("acid", shards, &cold);
        let families = [false, true].map(|is_json| build_chain(&mut server, is_json));
        // Each shard has to carry enough for its journal to be over its budget.
        for number in 0..40 {
            let name = format!("ballast/{number}");
            server.create(&name, &[TEXT], "x".repeat(16 << 10));
            server.append(&name, TEXT, "x".repeat(16 << 10));
        }
        server.check_over_restarts(|server| families.iter().for_each(|family| family.check(server)));
    }
}

#[test]
fn families_that_grow_at_random_read_right() {
    on_each_layout(|mut server| {
        for seed in 0..4 {
            let mut dice = Dice::new(seed);
            let mut family = Family::new(&format!("family-{seed}"), seed % 2 == 0);
            family.create(&mut server, "root", "the root");
            for step in 0..24 {
                let member = dice.roll(family.members.len());
                if dice.roll(3) == 0 {
                    family.append(&mut server, member, ["x", "yz", "uvw"][dice.roll(3)]);
                } else {
                    let letter = dice.roll(family.letters(member) + 1);
                    let own = ["", "A", "BC", "DEF"][dice.roll(4)];
                    family.fork(&mut server, &format!("member-{step}"), member, letter, own);
                }
            }
            // Some go. Who has forks still serves them.
            for _ in 0..6 {
                let member = family.members.remove(dice.roll(family.members.len()));
                server.delete(&member.name);
            }
            family.check(&mut server);
            if server.is_durable {
                server.kill();
                family.check(&mut server);
            }
        }
    });
}
