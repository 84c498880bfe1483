//! What appends and restarts cost as a server's data grow.

use std::io;

use bytes::Bytes;
use rustix::process::Signal;

use super::append::Load;
use super::clients::{Looper, Method, Template, Turn, content, content_type};
use super::{Measured, Readings, Run};
use crate::suite::generator::{self, Client};
use crate::suite::process;
use crate::suite::servers::OwnServer;

const FILL_STREAMS: usize = 64;
const FILL_CONNECTIONS: usize = 8;
/// One append of what the disk is filled with. Bytes.
const FILL_BYTES: usize = 1_000_000;
/// Connections that create streams.
const CREATE_CONNECTIONS: usize = 64;

/// Fills the disk up to each size in turn, and measures appends and a restart after `kill -9` there.
pub(super) fn growth(run: &Run<'_>, own: &mut OwnServer, gigabytes: &[f64]) -> io::Result<Readings> {
    let mut readings = Readings::new();
    let mut filled = 0;
    for size in gigabytes {
        let bytes = (size * 1e9) as u64;
        let appends = usize::try_from(bytes.saturating_sub(filled) / FILL_BYTES as u64).unwrap_or(usize::MAX);
        let target = own.target().clone();
        let fill_run = Run { target: &target, prefix: "fill", ..*run };
        if filled == 0 {
            fill_run.create_streams(FILL_STREAMS, content_type(false), &Bytes::new())?;
        }
        fill(&fill_run, appends)?;
        filled += (appends * FILL_BYTES) as u64;
        let load = Load { connections: 64, streams: 64, bytes: 100, json: false, producers: false };
        let prefix = format!("{}-at-{}", run.prefix, readings.len());
        let mut measured = load.run(&Run { target: &target, prefix: &prefix, ..*run })?;
        let disk = own.disk_bytes();
        let restart = own.restart(Signal::KILL)?;
        measured.more.insert("stored GB".to_owned(), filled as f64 / 1e9);
        measured.more.insert("disk GB".to_owned(), disk as f64 / 1e9);
        measured.more.insert("ready after kill -9, s".to_owned(), restart.as_secs_f64());
        readings.push((format!("-{size}GB"), measured));
    }
    Ok(readings)
}

fn fill(run: &Run<'_>, appends: usize) -> io::Result<()> {
    let body = content(false, FILL_BYTES);
    let template = Template::with_body(run, "POST", content_type(false), FILL_BYTES);
    let client = |index: usize| -> Box<dyn Client> {
        let share = Turn::share(index, FILL_CONNECTIONS, FILL_STREAMS);
        let mine = (appends + FILL_CONNECTIONS - 1 - index) / FILL_CONNECTIONS;
        let looper = Looper::new(template.clone(), body.clone(), share, Method::Mutates);
        Box::new(looper.finishing_after(mine))
    };
    generator::run_to_end(run.target.address, (0..FILL_CONNECTIONS).map(client).collect()).map(drop)
}

/// Creates streams of one byte each. The result is the memory that each takes; besides, how fast they are made, and how soon
/// a server with that many takes requests again.
pub(super) fn many_streams(run: &Run<'_>, own: &mut OwnServer, streams: usize) -> io::Result<Readings> {
    let resident = |own: &OwnServer| -> io::Result<f64> {
        let pid = own.target().pid.expect("it was started here");
        Ok(process::usage(pid)?.resident_bytes as f64)
    };
    let before = resident(own)?;
    let begun = std::time::Instant::now();
    let body = content(false, 1);
    let template = Template::with_body(run, "PUT", content_type(false), body.len());
    let client = |index: usize| -> Box<dyn Client> {
        let share = Turn::share(index, CREATE_CONNECTIONS, streams);
        let looper = Looper::new(template.clone(), body.clone(), share, Method::Mutates);
        Box::new(looper.finishing_after(share.len()))
    };
    let clients = (0..CREATE_CONNECTIONS.min(streams)).map(client).collect();
    generator::run_to_end(run.target.address, clients)?;
    let seconds = begun.elapsed().as_secs_f64();
    let grown = resident(own)? - before;
    let mut measured = Measured { value: grown / streams as f64, ..Measured::default() };
    measured.more.insert("streams".to_owned(), streams as f64);
    measured.more.insert("creates/s".to_owned(), streams as f64 / seconds);
    let clean = own.restart(Signal::TERM)?;
    measured.more.insert("ready after a stop, s".to_owned(), clean.as_secs_f64());
    let empty = before.min(resident(own)?);
    measured.more.insert("B a stream after a restart".to_owned(), (resident(own)? - empty) / streams as f64);
    let killed = own.restart(Signal::KILL)?;
    measured.more.insert("ready after kill -9, s".to_owned(), killed.as_secs_f64());
    Ok(vec![(String::new(), measured)])
}
