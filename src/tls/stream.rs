//! How do plain bytes become TLS records, and records plain bytes?
//!
//! A [`TlsStream`] drives a connection of rustls that has no buffers of its own: one that idles holds its keys
//! and nothing else, and several records are read and written with one system call. Whatever is TLS about it
//! rustls does; here is decided when to read and to write, and what is kept until then.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::ops::DerefMut;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::CommonState;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedConnectionCommon,
    UnbufferedStatus, WriteTraffic,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream of whoever accepted a connection.
pub type ServerStream<IO> = TlsStream<IO, UnbufferedServerConnection>;

/// The stream of whoever made a connection.
pub type ClientStream<IO> = TlsStream<IO, UnbufferedClientConnection>;

/// One side of a TLS connection, as rustls keeps it.
pub trait Connection: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> + Unpin {
    /// What this side alone has.
    type Data;

    /// Takes `incoming` until there is something to do about it.
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Connection for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Connection for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// An encrypted stream over `IO`.
///
/// Whatever becomes of `IO` becomes of it, and besides: reading fails with [`io::ErrorKind::UnexpectedEof`] if `IO`
/// ends before the peer has said under its keys that it would (`close_notify`, RFC 8446 §6.1), and with
/// [`io::ErrorKind::InvalidData`] and the [`rustls::Error`] if a record is not in order; the peer is sent the alert.
pub struct TlsStream<IO, C> {
    io: IO,
    session: Session<C>,
}

impl<IO, C: Connection> TlsStream<IO, C>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// Makes the handshake on `io`, of which `tls` has seen nothing yet.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] and the [`rustls::Error`], of which the peer was told by an alert; or what
    /// became of `io`.
    pub(super) async fn handshake(mut io: IO, tls: C) -> io::Result<Self> {
        let mut session = Session::new(tls);
        let mut advanced = session.advance();
        poll_fn(|cx| {
            loop {
                let written = session.sealed.poll_write_to(&mut io, cx);
                if let Err(error) = &advanced {
                    // Whoever does not take the alert at once is not waited for.
                    return Poll::Ready(Err(broken(error.clone())));
                }
                if !session.tls.is_handshaking() {
                    ready!(written)?;
                    return Pin::new(&mut io).poll_flush(cx);
                }
                let _ = written?;
                // Both sides may be writing: whoever does not read then could wait for ever.
                ready!(session.poll_read_from(&mut io, cx))?;
                advanced = session.advance();
            }
        })
        .await?;
        session.ahead.shrink_to_fit();
        Ok(Self { io, session })
    }

    /// What both sides agreed on.
    pub(super) fn agreed(&self) -> &CommonState {
        &self.session.tls
    }
}

impl<IO, C: Connection> AsyncRead for TlsStream<IO, C>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, session } = &mut *self;
        if session.fetch(buffer) || session.ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &session.failed {
            return Poll::Ready(Err(broken((**error).clone())));
        }
        let before = buffer.filled().len();
        let mut scratch = [MaybeUninit::uninit(); AHEAD];
        let most = buffer.remaining().max(session.ahead.len() + RECORD);
        let mut incoming = ReadBuf::uninit(&mut scratch[..most.min(AHEAD)]);
        incoming.put_slice(&session.ahead);
        session.ahead = Vec::new();
        loop {
            if !session.starved {
                let (done, opened) = session.open(incoming.filled_mut(), buffer);
                let rest = incoming.filled().len() - done;
                incoming.filled_mut().copy_within(done.., 0);
                incoming.set_filled(rest);
                if opened.is_err() {
                    // It may be that the alert goes out at once. What was in order before is read all the same.
                    let _ = session.sealed.poll_write_to(io, cx);
                }
                if buffer.filled().len() > before || session.ended {
                    session.ahead.extend_from_slice(incoming.filled());
                    return Poll::Ready(Ok(()));
                }
                opened.map_err(broken)?;
            }
            if incoming.remaining() == 0 {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let held = incoming.filled().len();
            let read = Pin::new(&mut *io).poll_read(cx, &mut incoming);
            if read.is_pending() {
                session.ahead.extend_from_slice(incoming.filled());
                session.sealed.rest();
            }
            ready!(read)?;
            if incoming.filled().len() == held {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            session.starved = false;
        }
    }
}

impl<IO, C: Connection> AsyncWrite for TlsStream<IO, C>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// What was taken and not written yet goes out with the next write, or with a flush.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, session } = &mut *self;
        ready!(session.sealed.poll_write_to(io, cx))?;
        let taken = session.seal(pieces)?;
        match session.sealed.poll_write_to(io, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, session } = &mut *self;
        ready!(session.sealed.poll_write_to(io, cx))?;
        Pin::new(io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, session } = &mut *self;
        session.close();
        ready!(session.sealed.poll_write_to(io, cx))?;
        match ready!(Pin::new(io).poll_shutdown(cx)) {
            // The other side was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            shut => Poll::Ready(shut),
        }
    }
}

impl<IO: fmt::Debug, C> fmt::Debug for TlsStream<IO, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("io", &self.io)
            .finish_non_exhaustive()
    }
}

/// A connection, and what of it has not been handed on.
struct Session<C> {
    tls: C,
    /// Came in, and has not been opened.
    ahead: Vec<u8>,
    /// What is `ahead`, or has been put back there, is no whole record.
    starved: bool,
    /// Was opened and has not been fetched, from `fetched` on.
    opened: Vec<u8>,
    fetched: usize,
    sealed: Sealed,
    /// The peer has said that nothing more comes.
    ended: bool,
    /// We have said so.
    closed: bool,
    /// Nothing comes or goes any more. rustls itself would go on behind a record that it could not open.
    failed: Option<Box<rustls::Error>>,
}

impl<C: Connection> Session<C> {
    fn new(tls: C) -> Self {
        Self {
            tls,
            ahead: Vec::new(),
            starved: true,
            opened: Vec::new(),
            fetched: 0,
            sealed: Sealed::default(),
            ended: false,
            closed: false,
            failed: None,
        }
    }

    /// Hands out what was opened before, and says whether there was any.
    fn fetch(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = &self.opened[self.fetched..];
        if rest.is_empty() {
            return false;
        }
        let piece = &rest[..rest.len().min(buffer.remaining())];
        buffer.put_slice(piece);
        self.fetched += piece.len();
        if self.fetched == self.opened.len() {
            (self.opened, self.fetched) = (Vec::new(), 0);
        }
        true
    }

    /// Opens the records in `incoming`, as far as `buffer` has room for them: at least one, of which the rest is kept.
    /// Says how many bytes of `incoming` are done with.
    fn open(
        &mut self,
        incoming: &mut [u8],
        buffer: &mut ReadBuf<'_>,
    ) -> (usize, Result<(), rustls::Error>) {
        let (mut done, before) = (0, buffer.filled().len());
        loop {
            let rest = &mut incoming[done..];
            if buffer.filled().len() > before && !fits(rest, buffer.remaining()) {
                self.starved = rest.is_empty();
                return (done, Ok(()));
            }
            let keep = &mut self.opened;
            let (handled, next) = next(&mut self.tls, rest, &mut self.sealed, |bytes| {
                let piece = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..piece]);
                keep.extend_from_slice(&bytes[piece..]);
            });
            done += handled;
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Starved(_)) => {
                    self.starved = true;
                    return (done, Ok(()));
                }
                Ok(Next::Ended) => {
                    self.ended = true;
                    return (done, Ok(()));
                }
                Err(error) => {
                    self.fail(&error, &mut incoming[done..]);
                    return (done, Err(error));
                }
            }
        }
    }

    /// Ends it, and seals what the peer is to be told.
    fn fail(&mut self, error: &rustls::Error, incoming: &mut [u8]) {
        self.failed = Some(Box::new(error.clone()));
        while self.tls.wants_write() {
            let (_, told) = next(&mut self.tls, incoming, &mut self.sealed, |_| ());
            if told.is_err() {
                break;
            }
        }
    }

    /// Reads some of a handshake.
    fn poll_read_from<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.len() >= AHEAD {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let mut scratch = [MaybeUninit::uninit(); FLIGHT];
        let mut flight = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(io).poll_read(cx, &mut flight))?;
        if flight.filled().is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.ahead.extend_from_slice(flight.filled());
        Poll::Ready(Ok(()))
    }

    /// Opens all that is `ahead`, and answers what is to be answered.
    fn advance(&mut self) -> Result<(), rustls::Error> {
        self.then(|_, _| Ok(())).map(drop)
    }

    /// Seals a beginning of `pieces`, and says how long it is.
    fn seal(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sealed = self.then(|traffic, sealed| sealed.seal(traffic, pieces));
        sealed
            .map_err(broken)?
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// Says that nothing more comes from us, unless the connection is broken.
    fn close(&mut self) {
        if !mem::replace(&mut self.closed, true) {
            let _ = self.then(|mut traffic, sealed| {
                sealed.put(0, |room| Ok(traffic.queue_close_notify(room)?))
            });
        }
    }

    /// Does `work` once nothing is `ahead` that could be opened first, if there may be traffic then. For rustls seals
    /// nothing before it has opened what has come; what it opens is kept for whoever reads, who has been told already
    /// that there is more.
    fn then<T>(
        &mut self,
        work: impl FnOnce(WriteTraffic<'_, C::Data>, &mut Sealed) -> Result<T, rustls::Error>,
    ) -> Result<Option<T>, rustls::Error> {
        if let Some(error) = &self.failed {
            return Err((**error).clone());
        }
        let mut done = 0;
        let outcome = loop {
            let keep = |bytes: &[u8]| self.opened.extend_from_slice(bytes);
            let rest = &mut self.ahead[done..];
            let (handled, next) = next(&mut self.tls, rest, &mut self.sealed, keep);
            done += handled;
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Ended) => self.ended = true,
                Ok(Next::Starved(traffic)) => {
                    self.starved = true;
                    let work = |traffic| work(traffic, &mut self.sealed);
                    break traffic.map(work).transpose();
                }
                Err(error) => {
                    let mut ahead = mem::take(&mut self.ahead);
                    self.fail(&error, &mut ahead[done..]);
                    return Err(error);
                }
            }
        };
        if done > 0 {
            self.ahead.drain(..done);
        }
        outcome
    }
}

/// What there is to do after one step.
enum Next<'c, D> {
    Again,
    /// Nothing, before more comes in. There may be traffic, or there is none yet.
    Starved(Option<WriteTraffic<'c, D>>),
    /// The peer has said that nothing more comes.
    Ended,
}

/// Makes one step with what came in: says how many bytes are done with, and what to do next.
fn next<'c, C: Connection>(
    tls: &'c mut C,
    incoming: &mut [u8],
    sealed: &mut Sealed,
    mut opened: impl FnMut(&[u8]),
) -> (usize, Result<Next<'c, C::Data>, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = tls.process(incoming);
    let next = state.and_then(|state| {
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    opened(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(mut data) => {
                sealed.put(0, |room| Ok(data.encode(room)?))?;
            }
            // What is sealed goes out in its order, so it is as good as sent.
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => return Ok(Next::Ended),
            ConnectionState::WriteTraffic(traffic) => return Ok(Next::Starved(Some(traffic))),
            ConnectionState::BlockedHandshake | ConnectionState::Closed => {
                return Ok(Next::Starved(None));
            }
            // We take no early data (RFC 8446 §2.3), and know of no other state.
            _ => {
                return Err(rustls::Error::General(
                    "a state that was not asked for".into(),
                ));
            }
        }
        Ok(Next::Again)
    });
    (discard, next)
}

/// Whether the record that begins `incoming` has at most `room` plain bytes (RFC 8446 §5.2).
fn fits(incoming: &[u8], room: usize) -> bool {
    let length = incoming
        .get(3..HEAD)
        .and_then(|length| length.try_into().ok());
    length.is_some_and(|length| usize::from(u16::from_be_bytes(length)) <= room)
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Records on their way out: `bytes[sent..due]`.
#[derive(Default)]
struct Sealed {
    /// As long as it has ever been since it was last given back, so as not to be cleared each time.
    bytes: Vec<u8>,
    sent: usize,
    due: usize,
}

impl Sealed {
    /// Seals a beginning of `pieces`, and says how long it is.
    fn seal<D>(
        &mut self,
        mut traffic: WriteTraffic<'_, D>,
        pieces: &[IoSlice<'_>],
    ) -> Result<usize, rustls::Error> {
        let mut seal = |plain: &[u8]| {
            let records = plain.len().div_ceil(PLAIN);
            self.put(plain.len() + (records + 1) * OVERHEAD, |room| {
                Ok(traffic.encrypt(plain, room)?)
            })
        };
        let total = pieces.iter().map(|piece| piece.len()).sum();
        if pieces.len() > 1 && total <= SMALL {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
            seal(&pieces.concat())?;
            return Ok(total);
        }
        let mut taken = 0;
        for piece in pieces {
            let plain = &piece[..piece.len().min(AT_ONCE - taken)];
            seal(plain)?;
            taken += plain.len();
        }
        Ok(taken)
    }

    /// Puts behind the others what `write` writes, which says how much room it needs if there is too little.
    fn put(
        &mut self,
        mut room: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Unwritten>,
    ) -> Result<(), rustls::Error> {
        loop {
            let end = self.due + room;
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            match write(&mut self.bytes[self.due..end]) {
                Ok(written) => {
                    self.due += written;
                    return Ok(());
                }
                Err(Unwritten::NeedsRoom(needed)) if needed > room => room = needed,
                Err(_) => return Err(rustls::Error::EncryptError),
            }
        }
    }

    /// Writes all that is due.
    fn poll_write_to<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.due {
            let written = Pin::new(&mut *io).poll_write(cx, &self.bytes[self.sent..self.due]);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        if self.due > 0 && self.bytes.len() < AT_ONCE {
            self.bytes = Vec::new();
        }
        (self.sent, self.due) = (0, 0);
        Poll::Ready(Ok(()))
    }

    /// Gives back its memory if nothing is on its way.
    fn rest(&mut self) {
        if self.due == 0 && self.bytes.capacity() > 0 {
            self.bytes = Vec::new();
        }
    }
}

/// Why nothing was written.
enum Unwritten {
    /// It takes so many bytes.
    NeedsRoom(usize),
    Never,
}

impl From<EncodeError> for Unwritten {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => {
                Self::NeedsRoom(required_size)
            }
            EncodeError::AlreadyEncoded => Self::Never,
        }
    }
}

impl From<EncryptError> for Unwritten {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => {
                Self::NeedsRoom(required_size)
            }
            EncryptError::EncryptExhausted => Self::Never,
        }
    }
}

/// The head of a record, in bytes (RFC 8446 §5.1).
const HEAD: usize = 5;
/// The most plain bytes of a record (RFC 8446 §5.1).
const PLAIN: usize = 16 * 1024;
/// The longest record, with its head (RFC 8446 §5.2).
const RECORD: usize = HEAD + PLAIN + 256;
/// What a record of ours is longer than what is in it: its head, its kind and its tag.
const OVERHEAD: usize = HEAD + 1 + 16;
/// What is read at once at most. It is read to the stack, and costs nothing but for what comes.
const AHEAD: usize = 4 * (PLAIN + OVERHEAD);
/// What is sealed at once at most, in plain bytes.
const AT_ONCE: usize = 4 * PLAIN;
/// Pieces that are shorter than this together go into one record, which costs a copy.
const SMALL: usize = 4 * 1024;
/// What is read at once of a handshake: the certificates of a peer take no more, as a rule.
const FLIGHT: usize = 4 * 1024;

#[cfg(test)]
mod tests;
