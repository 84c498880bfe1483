//! Bodies of read answers, made of stored bytes without copying them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes, BytesMut};
use http_body::{Frame, SizeHint};

/// Pages up to this size are copied into one piece: cheaper than handing pieces on one by one.
const COPIED_PAGE_BYTES_MAX: usize = 4 * 1024;
/// Neighbouring pieces are joined while they fit in this size, so that a page of many small appends does not become
/// as many small writes.
const JOINED_BYTES_MAX: usize = 16 * 1024;

/// What is done with a page of several pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageForm {
    /// It is a body like any other.
    Body,
    /// It is in the extensions of the response, which has no body then, and found there by [`Page::take_from`]: a body hands
    /// over one piece at a time, and each costs a system call of its own.
    Attached,
}

/// Gives `response` a page of `stored` bytes. For JSON it is one array: `m1,m2,` becomes `[m1,m2]` by cutting the last comma
/// off and putting brackets around (`protocol.md` §5).
pub(super) fn put_page(response: &mut Response, stored: Vec<Bytes>, is_json: bool, form: PageForm) {
    let mut pieces = VecDeque::from(stored);
    pieces.retain(|piece| !piece.is_empty());
    if is_json {
        if let Some(last) = pieces.back_mut() {
            debug_assert_eq!(last.last(), Some(&b','), "a stored message ends with a comma");
            last.truncate(last.len() - 1);
        }
        pieces.push_front(Bytes::from_static(b"["));
        pieces.push_back(Bytes::from_static(b"]"));
    }
    let left: usize = pieces.iter().map(Bytes::len).sum();
    *response.body_mut() = match pieces.pop_front() {
        None => Body::empty(),
        Some(only) if pieces.is_empty() => Body::from(only),
        Some(first) if left <= COPIED_PAGE_BYTES_MAX => Body::from(join(first, &mut pieces, left)),
        Some(first) => {
            pieces.push_front(first);
            let page = Page { pieces, left };
            match form {
                PageForm::Body => page.into_body(),
                PageForm::Attached => {
                    response.extensions_mut().insert(page);
                    Body::empty()
                }
            }
        }
    };
}

/// A page of several pieces, to be written all at once. None is empty.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pieces: VecDeque<Bytes>,
    left: usize,
}

impl Page {
    /// What is in `response` instead of a body.
    pub(crate) fn take_from(response: &mut Response) -> Option<Self> {
        response.extensions_mut().remove()
    }

    /// The same, piece by piece.
    pub(crate) fn into_body(self) -> Body {
        Body::new(PageBody(self))
    }
}

impl Buf for Page {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.pieces).map(|(slice, piece)| *slice = IoSlice::new(piece));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.left, "more is taken than there is");
        self.left -= count;
        while let Some(first) = self.pieces.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            // What was sent is let go, and the room that it takes with it.
            self.pieces.pop_front();
        }
    }
}

/// `first` and as many of `pieces` behind it as fit in `bytes_max`, in one piece.
fn join(first: Bytes, pieces: &mut VecDeque<Bytes>, bytes_max: usize) -> Bytes {
    let fits = |len: usize, next: Option<&Bytes>| next.is_some_and(|next| len + next.len() <= bytes_max);
    if !fits(first.len(), pieces.front()) {
        return first;
    }
    let mut joined = BytesMut::with_capacity(bytes_max);
    joined.extend_from_slice(&first);
    while fits(joined.len(), pieces.front()) {
        if let Some(piece) = pieces.pop_front() {
            joined.extend_from_slice(&piece);
        }
    }
    joined.freeze()
}

/// See [`Page::into_body`].
#[derive(Debug)]
struct PageBody(Page);

impl http_body::Body for PageBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Page { pieces, left } = &mut self.0;
        let Some(first) = pieces.pop_front() else { return Poll::Ready(None) };
        let piece = join(first, pieces, JOINED_BYTES_MAX);
        *left -= piece.len();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.left as u64)
    }
}

/// The body of a response that has none and speaks of no length: without a size hint nobody adds `Content-Length`.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoBody;

impl http_body::Body for NoBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::BodyExt;

    use super::*;

    async fn frames(body: Body) -> Vec<Bytes> {
        let mut body = body;
        let mut left = body.size_hint().exact().expect("a page has a known length");
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            left -= data.len() as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
            frames.push(data);
        }
        assert_eq!(left, 0);
        assert!(body.is_end_stream());
        frames
    }

    fn page_body(stored: Vec<Bytes>, is_json: bool) -> Body {
        let mut response = Response::new(Body::empty());
        put_page(&mut response, stored, is_json, PageForm::Body);
        response.into_body()
    }

    async fn text(stored: &[&'static str], is_json: bool) -> String {
        let stored = stored.iter().map(|piece| Bytes::from_static(piece.as_bytes())).collect();
        String::from_utf8(frames(page_body(stored, is_json)).await.concat()).unwrap()
    }

    #[tokio::test]
    async fn json_pages_are_one_array_however_the_bytes_are_cut() {
        assert_eq!(text(&[], true).await, "[]");
        assert_eq!(text(&["", ""], true).await, "[]");
        assert_eq!(text(&["1,"], true).await, "[1]");
        assert_eq!(text(&["1,{\"a\"", ":2},", ""], true).await, "[1,{\"a\":2}]");
        assert_eq!(text(&["1", ","], true).await, "[1]");
    }

    #[tokio::test]
    async fn other_pages_are_the_stored_bytes() {
        assert_eq!(text(&[], false).await, "");
        assert_eq!(text(&["a,"], false).await, "a,");
        assert_eq!(text(&["a", "", "b"], false).await, "ab");
    }

    #[tokio::test]
    async fn large_pieces_are_passed_on_as_they_are_and_small_ones_joined() {
        let large = Bytes::from(vec![b'x'; JOINED_BYTES_MAX]);
        let small = Bytes::from_static(b"yy");
        let mut stored = vec![large.clone()];
        stored.extend(vec![small; 3000]);
        stored.push(large.clone());
        let body = page_body(stored.clone(), false);
        let frames = frames(body).await;
        assert_eq!(frames.concat(), stored.concat());
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0].as_ptr(), large.as_ptr(), "the piece was copied");

        let frames = self::frames(page_body(vec![Bytes::from("1,".repeat(JOINED_BYTES_MAX))], true)).await;
        assert_eq!(
            frames.concat(),
            format!("[{}]", "1,".repeat(JOINED_BYTES_MAX).trim_end_matches(',')).as_bytes()
        );
        assert_eq!(frames.len(), 3);
    }

    #[tokio::test]
    async fn an_attached_page_is_the_same_bytes_however_they_are_taken() {
        let stored: Vec<_> = [9_000, 1, 70_000, 5].map(|len| Bytes::from(vec![b','; len])).into();
        let whole = frames(page_body(stored.clone(), true)).await.concat();
        let mut response = Response::new(Body::empty());
        put_page(&mut response, stored, true, PageForm::Attached);
        assert_eq!(response.body().size_hint().exact(), Some(0));
        let page = Page::take_from(&mut response).unwrap();
        assert!(Page::take_from(&mut response).is_none());
        assert_eq!(frames(page.clone().into_body()).await.concat(), whole);
        for step in [1, 9_001, 100_000] {
            let mut page = page.clone();
            let mut taken = Vec::new();
            while page.has_remaining() {
                assert_eq!(page.remaining(), whole.len() - taken.len());
                let mut slices = [IoSlice::new(&[]); 3];
                let count = page.chunks_vectored(&mut slices);
                let offered = slices[..count].iter().flat_map(|slice| slice.iter().copied());
                let now: Vec<_> = offered.take(step).collect();
                assert!(!now.is_empty());
                assert!(page.chunk().starts_with(&now[..now.len().min(page.chunk().len())]));
                page.advance(now.len());
                taken.extend(now);
            }
            assert_eq!(taken, whole);
            assert_eq!(page.chunks_vectored(&mut [IoSlice::new(&[])]), 0);
        }
    }
}
