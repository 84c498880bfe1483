//! Writers with idempotent producers, each with a sequence of its own in a stream that it shares with others.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::pages;
use crate::support::http::{Client, Response};

const STREAMS: usize = 5;

/// Every other stream is JSON.
fn content_type(stream: usize) -> &'static str {
    if stream.is_multiple_of(2) { "text/plain" } else { "application/json" }
}

fn path(stream: usize) -> String {
    format!("/v1/stream/log/{stream}")
}

pub(crate) fn create_streams(client: &mut Client) {
    for stream in 0..STREAMS {
        let headers = [("Content-Type", content_type(stream))];
        client.request("PUT", &path(stream), &headers, b"").expect_status(201);
    }
}

pub(crate) struct Writer {
    number: usize,
    /// Next record to be written; all before were acknowledged.
    next: u64,
}

impl Writer {
    pub(crate) fn new(number: usize) -> Self {
        Self { number, next: 0 }
    }

    /// Records that the server said it has.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.next
    }

    fn stream(&self) -> usize {
        self.number % STREAMS
    }

    fn send(&self, client: &mut Client, seq: u64) -> std::io::Result<Response> {
        let (producer, text) = (format!("writer-{}", self.number), seq.to_string());
        let headers = [
            ("Content-Type", content_type(self.stream())),
            ("Producer-Id", &producer),
            ("Producer-Epoch", "0"),
            ("Producer-Seq", &text),
        ];
        // Of any size, so that records begin and end anywhere in what is written to disk.
        let filler = "x".repeat((seq * 37 % 1_500) as usize);
        let mut record = format!("[[{}, {seq}, \"{filler}\"]]", self.number);
        if !self.is_json() {
            record = format!("{}\n", &record[1..record.len() - 1]);
        }
        client.try_request("POST", &path(self.stream()), &headers, record.as_bytes())
    }

    fn is_json(&self) -> bool {
        content_type(self.stream()) == "application/json"
    }

    pub(crate) fn write_until_cut_off(&mut self, mut client: Client, acknowledged: &AtomicU64) {
        while let Ok(response) = self.send(&mut client, self.next) {
            response.expect_status(200);
            self.next += 1;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Compares with what the stream has of this writer, and sends again what was on its way.
    fn check(&mut self, client: &mut Client, seqs: &[u64]) {
        assert!(seqs.iter().copied().eq(0..seqs.len() as u64), "writer {}: {seqs:?}", self.number);
        let (there, acknowledged) = (seqs.len() as u64, self.next);
        assert!(
            there == acknowledged || there == acknowledged + 1,
            "{there} records, {acknowledged} acknowledged"
        );
        let mut send = |seq: u64| self.send(client, seq).expect("nobody kills the server now");
        let gap = send(acknowledged + 2).expect_status(409);
        assert_eq!(gap.header("Producer-Expected-Seq"), Some(there.to_string().as_str()));
        if let Some(last) = acknowledged.checked_sub(1) {
            send(last).expect_status(204);
        }
        send(acknowledged).expect_status(if there > acknowledged { 204 } else { 200 });
        let again = send(acknowledged).expect_status(204);
        assert_eq!(again.header("Producer-Seq"), Some(acknowledged.to_string().as_str()));
        self.next += 1;
    }
}

/// Every record of a stream, in order: writer and number.
fn records(client: &mut Client, stream: usize) -> Vec<(usize, u64)> {
    let pages = pages(client, &path(stream));
    let values: Vec<Value> = if content_type(stream) == "application/json" {
        pages
            .iter()
            .flat_map(|page| serde_json::from_slice::<Vec<Value>>(page).expect("a page is an array"))
            .collect()
    } else {
        let text = String::from_utf8(pages.concat()).expect("the records are text");
        assert!(text.is_empty() || text.ends_with('\n'), "the last record is whole");
        text.lines().map(|line| serde_json::from_str(line).expect("a record is whole")).collect()
    };
    let record = |value: &Value| {
        let (writer, seq) = (value[0].as_u64().expect("a writer"), value[1].as_u64().expect("a number"));
        let filler = value[2].as_str().expect("a filler");
        assert_eq!(filler.len() as u64, seq * 37 % 1_500);
        (writer as usize, seq)
    };
    values.iter().map(record).collect()
}

pub(crate) fn check(client: &mut Client, writers: &mut [Writer]) {
    for stream in 0..STREAMS {
        let records = records(client, stream);
        assert!(records.iter().all(|(writer, _)| writer % STREAMS == stream));
        for writer in writers.iter_mut().filter(|writer| writer.stream() == stream) {
            let own = records.iter().filter(|(number, _)| *number == writer.number);
            let seqs: Vec<u64> = own.map(|(_, seq)| *seq).collect();
            writer.check(client, &seqs);
        }
    }
}
