//! What a file holds: pages of RAM, shared between the images of it that a disk keeps.

use std::io;
use std::sync::Arc;

/// What a page cache reads, writes and forgets as a whole.
pub(super) const PAGE_BYTES: usize = 4096;

type Page = Arc<[u8; PAGE_BYTES]>;

/// The content of a file at one moment, with holes where nothing was written. What lies behind `len` is zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pages: Vec<Option<Page>>,
    len: u64,
    allocated: usize,
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        (self.allocated * PAGE_BYTES) as u64
    }

    /// How much more would be allocated by a write there. Bytes.
    pub(super) fn missing_bytes(&self, offset: u64, len: usize) -> u64 {
        let missing = pages_of(offset, len).filter(|&at| self.pages.get(at).is_none_or(Option::is_none));
        (missing.count() * PAGE_BYTES) as u64
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, span) in pieces(offset, out.len()) {
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(bytes) => out[span.clone()].copy_from_slice(&bytes[within..within + span.len()]),
                None => out[span].fill(0),
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.put(offset, data);
        self.len = self.len.max(offset + data.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.forget_from(len);
        }
        self.len = len;
    }

    /// The pages that a stretch touches, as they are now.
    pub(super) fn excerpt(&self, offset: u64, len: usize) -> Excerpt {
        let touched = pages_of(offset, len);
        let first = touched.start;
        Excerpt { first, pages: touched.map(|at| self.pages.get(at).cloned().flatten()).collect() }
    }

    /// Takes over that stretch of pages, whatever the length.
    pub(super) fn restore(&mut self, from: &Excerpt, offset: u64, len: usize) {
        for (page, within, span) in pieces(offset, len) {
            let source = &from.pages[page - from.first];
            if span.len() == PAGE_BYTES {
                self.set_page(page, source.clone());
            } else {
                let zeros = [0; PAGE_BYTES];
                let source = source.as_deref().unwrap_or(&zeros);
                self.put(offset + span.start as u64, &source[within..within + span.len()]);
            }
        }
    }

    /// Makes everything from there on zero, without a change of the length.
    pub(super) fn forget_from(&mut self, offset: u64) {
        let first_whole = (offset as usize).div_ceil(PAGE_BYTES);
        for page in first_whole..self.pages.len() {
            self.set_page(page, None);
        }
        self.pages.truncate(first_whole);
        let (page, within) = (offset as usize / PAGE_BYTES, offset as usize % PAGE_BYTES);
        if let Some(Some(bytes)) = self.pages.get_mut(page) {
            Arc::make_mut(bytes)[within..].fill(0);
        }
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        for (page, within, span) in pieces(offset, data.len()) {
            if self.pages.get(page).is_none_or(Option::is_none) {
                self.set_page(page, Some(Arc::new([0; PAGE_BYTES])));
            }
            let bytes = self.pages[page].as_mut().expect("it was just made");
            Arc::make_mut(bytes)[within..within + span.len()].copy_from_slice(&data[span]);
        }
    }

    fn set_page(&mut self, at: usize, page: Option<Page>) {
        if at >= self.pages.len() {
            if page.is_none() {
                return;
            }
            self.pages.resize(at + 1, None);
        }
        self.allocated += usize::from(page.is_some());
        let old = std::mem::replace(&mut self.pages[at], page);
        self.allocated -= usize::from(old.is_some());
    }
}

/// Pages that follow each other.
#[derive(Clone, Debug)]
pub(super) struct Excerpt {
    first: usize,
    pages: Vec<Option<Page>>,
}

impl Excerpt {
    /// Where it is, in whole pages: offset and length.
    pub(super) fn span(&self) -> (u64, usize) {
        ((self.first * PAGE_BYTES) as u64, self.pages.len() * PAGE_BYTES)
    }
}

/// Numbers of the pages that a stretch touches.
fn pages_of(offset: u64, len: usize) -> std::ops::Range<usize> {
    let offset = offset as usize;
    offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES)
}

/// A stretch, cut at the ends of pages: number of the page, where in it, which part of the stretch.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset as usize + done;
        let within = at % PAGE_BYTES;
        let span = done..len.min(done + PAGE_BYTES - within);
        done = span.end;
        Some((at / PAGE_BYTES, within, span))
    })
}
