//! A bar for whoever waits in front of a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use crate::tools::Progress;

/// Draws on the standard error stream, and nothing at all if that is no terminal.
#[derive(Debug, Default)]
pub(super) struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    /// So many bytes are done, of a total that may turn out to be larger.
    pub(super) fn show(&mut self, what: &str, done: u64, total: u64) {
        if self.bar.is_none() {
            self.begin(what, total.max(1));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(done));
            bar.set_position(done);
        }
    }
}

impl Progress for Bar {
    fn begin(&mut self, what: &str, bytes: u64) {
        self.end();
        let bar = if bytes > 0 { ProgressBar::new(bytes) } else { ProgressBar::new_spinner() };
        let template = if bytes > 0 {
            "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
        } else {
            "{msg} {bytes} {bytes_per_sec}"
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
        bar.set_message(what.to_owned());
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}
