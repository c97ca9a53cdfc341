//! Which sockets did the service manager open for us? (sd_listen_fds(3))
//!
//! They stay open while no process serves them, so who connects during a restart waits in the kernel's queue.
//! A listener takes the one at its own address: the same configuration works with and without them. Names that
//! the unit gives them are not looked at.

use std::io;
use std::os::fd::AsFd;

use listenfd::ListenFd;
use socket2::{SockRef, Socket};

use super::{Address, Bound, Claim};

/// Listening sockets that were handed over and that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(Address, Socket)>);

/// What was handed over cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// No listener wants it: whoever connects to it would wait for ever.
    #[error(
        "the service manager handed over a socket for {0}, and no listener of the configuration is there"
    )]
    Unwanted(Address),
    /// We listen for streams alone.
    #[error("the service manager handed over a descriptor that is no TCP or Unix stream socket")]
    NoStream(#[source] io::Error),
    /// It belongs to a connection, which `Accept=yes` makes.
    #[error(
        "the service manager handed over a socket for {0} that does not listen: write `Accept=no`"
    )]
    NotListening(Address),
    /// The operating system says nothing of it.
    #[error("cannot use a socket that the service manager handed over")]
    Io(#[from] io::Error),
}

impl Inherited {
    /// Those that the environment names (`LISTEN_FDS`, `LISTEN_PID`), which is cleared of them.
    ///
    /// # Errors
    /// [`InheritError`], if one of them is of no use.
    pub fn from_environment() -> Result<Self, InheritError> {
        let mut given = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(given.len());
        for index in 0..given.len() {
            let tcp = given.take_tcp_listener(index);
            let socket = match tcp {
                Ok(socket) => socket.map(Socket::from),
                Err(_) => given
                    .take_unix_listener(index)
                    .map_err(InheritError::NoStream)?
                    .map(Socket::from),
            };
            if let Some(socket) = socket {
                sockets.push(described(socket)?);
            }
        }
        Ok(Self(sockets))
    }

    /// The one at `address`, if there is one.
    pub fn take(&mut self, address: &Address) -> Option<Socket> {
        let index = self.0.iter().position(|(at, _)| at == address)?;
        Some(self.0.swap_remove(index).1)
    }

    /// The one at `address` for each of `workers`, if there is one: all take from its queue.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn bind(&mut self, address: &Address, workers: usize) -> io::Result<Option<Vec<Bound>>> {
        let Some(socket) = self.take(address) else {
            return Ok(None);
        };
        // It listens already, so nobody else can.
        let claim = Claim::new(Ok(()).into());
        let bound = |_| {
            let socket = socket.try_clone()?;
            Ok(Bound(socket, address.clone(), claim.clone()))
        };
        (0..workers).map(bound).collect::<io::Result<_>>().map(Some)
    }

    /// To be called when everybody has taken theirs.
    ///
    /// # Errors
    /// [`InheritError::Unwanted`].
    pub fn finish(self) -> Result<(), InheritError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((address, _)) => Err(InheritError::Unwanted(address)),
        }
    }
}

fn described(socket: Socket) -> Result<(Address, Socket), InheritError> {
    let local = socket.local_addr()?;
    let path = || local.as_pathname().map(|path| Address::Unix(path.into()));
    let address = local.as_socket().map(Address::Tcp).or_else(path);
    let address = address.ok_or_else(|| {
        InheritError::NoStream(io::Error::other("it has no address in the file system"))
    })?;
    if !is_listening(&socket)? {
        return Err(InheritError::NotListening(address));
    }
    socket.set_nonblocking(true)?;
    Ok((address, socket))
}

fn is_listening(socket: &impl AsFd) -> io::Result<bool> {
    SockRef::from(socket).is_listener()
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;
    use crate::listen::{Listener, MINUTE};

    fn listening() -> Socket {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    #[tokio::test]
    async fn workers_take_from_one_queue_whoever_waited_in_it_before() {
        let socket = listening();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        // Nobody serves it yet.
        let _waiting = std::net::TcpStream::connect(address).unwrap();
        let mut inherited = Inherited(vec![described(socket).unwrap()]);
        let bound = inherited.bind(&Address::Tcp(address), 2).unwrap().unwrap();
        inherited.finish().unwrap();
        let listeners = bound.into_iter();
        let listeners: Vec<_> = listeners
            .map(|bound| Listener::new(bound, MINUTE).unwrap())
            .collect();
        assert_eq!(listeners.len(), 2);
        let accepted = crate::listen::Accept::accept(&listeners[1]).await;
        accepted.unwrap();
    }

    #[test]
    fn what_nobody_wants_and_what_does_not_listen_is_told() {
        let mut inherited = Inherited(vec![described(listening()).unwrap()]);
        let other = "127.0.0.1:1".parse().unwrap();
        assert!(inherited.bind(&other, 1).unwrap().is_none());
        assert!(matches!(inherited.finish(), Err(InheritError::Unwanted(_))));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(
                &"127.0.0.1:0"
                    .parse::<std::net::SocketAddr>()
                    .unwrap()
                    .into(),
            )
            .unwrap();
        let told = described(socket).unwrap_err();
        assert!(matches!(told, InheritError::NotListening(_)), "{told}");
    }
}
