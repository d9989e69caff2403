//! A stream on which the head of an HTTP answer is corrected.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest head of an answer, in bytes. Real ones have a few hundred.
const MAX_HEAD: usize = 64 << 10;

/// Passes bytes through in both directions, but corrects the head of the answer, for one answer:
///
/// - its version becomes HTTP/1.1, so that every version may have chunks;
/// - each `Content-Length` is dropped if there are chunks, or if it is not one number: the body then ends with the
///   connection.
pub(super) struct Mended<S> {
    stream: S,
    /// The head as far as it was received.
    head: Vec<u8>,
    /// Bytes at the start of `head` in which it does not end.
    searched: usize,
    /// The head is over.
    passing: bool,
    /// Corrected bytes that have not been read, from `at` on.
    out: Vec<u8>,
    at: usize,
}

impl<S> Mended<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, head: Vec::new(), searched: 0, passing: false, out: Vec::new(), at: 0 }
    }

    /// Adds received bytes to the head, and corrects it once it is complete.
    fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.head.extend_from_slice(bytes);
        while let Some(end) = end_of_head(&self.head, self.searched) {
            let rest = self.head.split_off(end);
            let (mended, interim) = mend(&self.head);
            self.out.extend(mended);
            (self.head, self.searched) = (rest, 0);
            // An interim answer (1xx) is followed by the head of the final one.
            if !interim {
                self.pass();
                return Ok(());
            }
        }
        self.searched = self.head.len().saturating_sub(3);
        if self.head.len() > MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head of the answer is too long"));
        }
        Ok(())
    }

    /// Passes on everything from now on.
    fn pass(&mut self) {
        self.out.append(&mut self.head);
        self.passing = true;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.at < this.out.len() {
                let len = buf.remaining().min(this.out.len() - this.at);
                buf.put_slice(&this.out[this.at..this.at + len]);
                this.at += len;
                return Poll::Ready(Ok(()));
            }
            (this.out, this.at) = (Vec::new(), 0);
            if this.passing {
                return Pin::new(&mut this.stream).poll_read(context, buf);
            }
            let mut chunk = [0; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut chunk))?;
            match chunk.filled() {
                // The connection ended within the head: what is wrong with that is said by the reader.
                [] => this.pass(),
                bytes => this.received(bytes)?,
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// For a fuzz target: a head in pieces is corrected like a whole one, and a corrected one stays as it is.
#[cfg_attr(not(any(test, fuzzing)), allow(dead_code, reason = "for tests and a fuzz target"))]
pub(super) fn check_correction(bytes: &[u8], chunk: usize) {
    if bytes.len() > MAX_HEAD {
        return;
    }
    let correct = |bytes: &[u8], chunk: usize| {
        let mut mended = Mended::new(());
        for chunk in bytes.chunks(chunk) {
            if mended.passing {
                mended.out.extend_from_slice(chunk);
            } else if mended.received(chunk).is_err() {
                return None;
            }
        }
        mended.pass();
        Some(mended.out)
    };
    let Some(whole) = correct(bytes, 4096) else { return };
    assert_eq!(correct(bytes, chunk).as_ref(), Some(&whole));
    assert_eq!(correct(&whole, 4096).as_ref(), Some(&whole));
}

/// Returns the end of a head, which is an empty line. The first `searched` bytes have none.
fn end_of_head(head: &[u8], searched: usize) -> Option<usize> {
    let starts = (searched..head.len()).filter(|at| head[*at] == b'\n');
    let ends = starts.filter_map(|at| match head[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    });
    ends.into_iter().next()
}

/// Corrects a complete head. Also returns whether it is that of an interim answer.
fn mend(head: &[u8]) -> (Vec<u8>, bool) {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut mended = Vec::with_capacity(head.len() + 16);
    let status = lines.next().unwrap_or_default();
    let rest = status.iter().position(|byte| *byte == b' ').map_or(status, |space| &status[space..]);
    let versioned = status.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/"));
    let rest = rest.trim_ascii_start();
    mended.extend_from_slice(if versioned { b"HTTP/1.1 " } else { b"" });
    mended.extend_from_slice(if versioned { rest } else { status });
    mended.extend_from_slice(b"\r\n");
    let interim = matches!(rest, [b'1', b'0', b'0' | b'2' | b'3', ..]);

    let fields: Vec<&[u8]> = lines.collect();
    let chunked = fields.iter().filter_map(|field| value_of(field, b"transfer-encoding"));
    let chunked = chunked.into_iter().any(|value| value.to_ascii_lowercase().ends_with(b"chunked"));
    let mut lengths = fields.iter().filter_map(|field| value_of(field, b"content-length"));
    let first = lengths.next().unwrap_or_default();
    let is_number = |text: &[u8]| (1..=18).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    let sound = !chunked && is_number(first) && lengths.all(|length| length == first);
    for field in fields {
        if sound || value_of(field, b"content-length").is_none() {
            mended.extend_from_slice(field);
            mended.extend_from_slice(b"\r\n");
        }
    }
    // The empty line and the empty piece after its end have become two empty lines.
    mended.truncate(mended.len() - 2);
    (mended, interim)
}

/// Returns the value of a header field if it has this name, which is in lower case.
fn value_of<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let colon = field.iter().position(|byte| *byte == b':')?;
    let (found, value) = field.split_at(colon);
    found.trim_ascii().eq_ignore_ascii_case(name).then(|| value[1..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn mended(head: &str) -> String {
        String::from_utf8(mend(head.as_bytes()).0).unwrap()
    }

    #[test]
    fn only_what_is_wrong_is_corrected() {
        for (head, expected) in [
            ("HTTP/1.2 200 OK\r\nA: b\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n\r\n"),
            ("HTTP/1.1   200   OK\r\n\r\n", "HTTP/1.1 200   OK\r\n\r\n"),
            ("http/2 404\nA:b\n\n", "HTTP/1.1 404\r\nA:b\r\n\r\n"),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: Chunked\r\n\r\n",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length : 6\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
            ("ICY 200 OK\r\n\r\n", "ICY 200 OK\r\n\r\n"),
        ] {
            assert_eq!(mended(head), expected, "{head}");
        }
    }

    async fn read(chunks: &[&[u8]]) -> io::Result<Vec<u8>> {
        let mut stream = tokio_test_stream(chunks);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.map(|_| all)
    }

    /// A stream that returns these chunks, one a read.
    fn tokio_test_stream(chunks: &[&[u8]]) -> Mended<Chunks> {
        Mended::new(Chunks(chunks.iter().rev().map(|chunk| chunk.to_vec()).collect()))
    }

    struct Chunks(Vec<Vec<u8>>);

    impl AsyncRead for Chunks {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if let Some(chunk) = self.0.pop() {
                buf.put_slice(&chunk);
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_head_in_pieces_is_corrected_and_the_body_is_not() {
        let body = "\r\n\r\nHTTP/1.2 200 OK\r\n\r\n";
        let answer = format!("HTTP/1.2 103 Early Hints\r\n\r\nHTTP/1.2 200 OK\r\nA: b\r\n\r\n{body}");
        let expected = format!("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n{body}");
        for size in [1, 2, 3, 7, 4096] {
            let chunks: Vec<&[u8]> = answer.as_bytes().chunks(size).collect();
            assert_eq!(read(&chunks).await.unwrap(), expected.as_bytes(), "{size}");
        }
    }

    proptest::proptest! {
        #[test]
        fn correcting_is_done_once(
            bytes in proptest::collection::vec(proptest::sample::select(b"HTTP/1.2 0\r\n\n:content-length".to_vec()), 0..200),
            chunk in 1usize..50,
        ) {
            check_correction(&bytes, chunk);
            check_correction(&[b"HTTP/1.2 100 \r\n".as_slice(), &bytes].concat(), chunk);
        }
    }

    #[tokio::test]
    async fn heads_are_bounded() {
        let line = [b'a'; 4096];
        let error = read(&[line.as_slice(); 100]).await.unwrap_err();
        assert_eq!(error.to_string(), "the head of the answer is too long");
        assert_eq!(read(&[b"HTTP/1.2 200"]).await.unwrap(), b"HTTP/1.2 200");
    }
}
