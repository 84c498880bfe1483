//! Short requests: create, HEAD, GET of a short stream.

use std::io;

use bytes::Bytes;

use super::clients::{Looper, Method, Template, Turn, content, content_type};
use super::{Measured, Run};
use crate::suite::generator::{Client, Gate};

/// What a short stream holds. Bytes.
const SHORT_BYTES: usize = 1000;

/// Makes streams under new names.
pub(super) fn create(run: &Run<'_>, connections: usize) -> io::Result<Measured> {
    let template = Template::with_body(run, "PUT", content_type(false), 0);
    looping(run, connections, &template, Method::Mutates, |index| Turn::fresh(index, connections))
}

/// Asks for the heads of streams, one for each connection.
pub(super) fn head(run: &Run<'_>, connections: usize) -> io::Result<Measured> {
    let template = Template::new(run, "HEAD", "", "", None);
    on_short_streams(run, connections, &template, Method::Heads)
}

/// Gets streams of 1 kB, one for each connection.
pub(super) fn get(run: &Run<'_>, connections: usize) -> io::Result<Measured> {
    let template = Template::new(run, "GET", "?offset=-1", "", None);
    on_short_streams(run, connections, &template, Method::Reads)
}

fn on_short_streams(
    run: &Run<'_>,
    connections: usize,
    template: &Template,
    method: Method,
) -> io::Result<Measured> {
    run.create_streams(connections, content_type(false), &content(false, SHORT_BYTES))?;
    let share = |index| Turn::share(index, connections, connections);
    let mut measured = looping(run, connections, template, method, share)?;
    run.delete_streams(connections);
    // Syncs have nothing to do with reads.
    measured.mutations = 0;
    Ok(measured)
}

fn looping(
    run: &Run<'_>,
    connections: usize,
    template: &Template,
    method: Method,
    share: impl Fn(usize) -> Turn,
) -> io::Result<Measured> {
    let client = |index: usize| -> Box<dyn Client> {
        Box::new(Looper::new(template.clone(), Bytes::new(), share(index), method))
    };
    let driven = run.drive((0..connections).map(client).collect(), &Gate::new(0))?;
    Ok(Measured::rate(&driven))
}
