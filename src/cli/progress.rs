//! A bar for whoever waits in front of a terminal.

use indicatif::{ProgressBar, ProgressStyle};

use crate::tools::Progress;

/// Draws on the standard error stream, and nothing at all if that is no terminal.
#[derive(Debug, Default)]
pub(super) struct Bar {
    bar: Option<ProgressBar>,
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
