//! Streams that come and go: each one is created with content, forked, deleted while its fork lives, and so on; and
//! what has to be true of each after its last acknowledged step.

use crate::support::http::Client;
use crate::{pages, wait_for_status};

/// The life of a source and its fork, one request a step.
const STEPS: usize = 6;

/// What a name should stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Absent,
    /// 410: deleted, but a fork lives.
    Gone,
    There {
        content: String,
        closed: bool,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Garden {
    /// How many steps of each plant were acknowledged.
    plants: Vec<usize>,
}

fn source(plant: usize) -> String {
    format!("/v1/stream/source/{plant}")
}

fn fork(plant: usize) -> String {
    format!("/v1/stream/fork/{plant}")
}

fn inherited(plant: usize) -> String {
    format!("inherited by {plant};").repeat(1 + plant % 40)
}

/// Sends one step. `Err` = cut off.
fn step(client: &mut Client, plant: usize, step: usize) -> std::io::Result<()> {
    let (source, fork) = (source(plant), fork(plant));
    let text = ("Content-Type", "text/plain");
    let (response, status) = match step {
        0 => (client.try_request("PUT", &source, &[text], inherited(plant).as_bytes())?, 201),
        1 => (client.try_request("PUT", &fork, &[("Stream-Forked-From", &source)], b"")?, 201),
        2 => (client.try_request("POST", &fork, &[text], b"own;")?, 204),
        3 => (client.try_request("DELETE", &source, &[], b"")?, 204),
        4 => (client.try_request("POST", &fork, &[text, ("Stream-Closed", "true")], b"end;")?, 204),
        _ => (client.try_request("DELETE", &fork, &[], b"")?, 204),
    };
    response.expect_status(status);
    Ok(())
}

/// Source and fork after so many steps.
fn states(plant: usize, steps: usize) -> [State; 2] {
    let content = inherited(plant);
    let there = |content: &str, closed| State::There { content: content.to_owned(), closed };
    let source = match steps {
        0 => State::Absent,
        1..=3 => there(&content, false),
        4..=5 => State::Gone,
        _ => State::Absent,
    };
    let fork = match steps {
        0..=1 => State::Absent,
        2 => there(&content, false),
        3..=4 => there(&format!("{content}own;"), false),
        5 => there(&format!("{content}own;end;"), true),
        _ => State::Absent,
    };
    [source, fork]
}

/// How many steps this plant is to go; so some stay in each state.
fn fate(plant: usize) -> usize {
    if plant.is_multiple_of(2) { STEPS } else { 1 + plant / 2 % STEPS }
}

fn look(client: &mut Client, path: &str) -> State {
    let head = client.request("HEAD", path, &[], b"");
    match head.status {
        404 => State::Absent,
        410 => State::Gone,
        200 => {
            let content = String::from_utf8(pages(client, path).concat()).expect("it is text");
            State::There { content, closed: head.header("Stream-Closed").is_some() }
        }
        other => panic!("{path} answers {other}"),
    }
}

impl Garden {
    pub(crate) fn grow_until_cut_off(&mut self, mut client: Client) {
        loop {
            let plant = self.plants.len();
            self.plants.push(0);
            for number in 0..fate(plant) {
                if step(&mut client, plant, number).is_err() {
                    return;
                }
                self.plants[plant] += 1;
            }
        }
    }

    /// Compares every plant with the server's idea of it. The last one may be a step further.
    pub(crate) fn check(&mut self, client: &mut Client) {
        let last = self.plants.len().saturating_sub(1);
        for (plant, steps) in self.plants.iter_mut().enumerate() {
            if *steps == STEPS {
                // The source goes when it has heard of its last fork's end.
                wait_for_status(client, &source(plant), 404);
            }
            let there = [look(client, &source(plant)), look(client, &fork(plant))];
            if there != states(plant, *steps) {
                assert_eq!(plant, last, "{steps} steps were acknowledged, but: {there:?}");
                assert!(*steps < STEPS);
                *steps += 1;
                if *steps == STEPS {
                    wait_for_status(client, &source(plant), 404);
                    assert_eq!(look(client, &fork(plant)), State::Absent);
                } else {
                    assert_eq!(there, states(plant, *steps), "plant {plant} after {steps} steps");
                }
            }
            if *steps == STEPS - 1 {
                let append =
                    client.request("POST", &fork(plant), &[("Content-Type", "text/plain")], b"late;");
                append.expect_status(409);
            }
        }
    }
}
