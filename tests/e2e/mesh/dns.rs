//! A name server whose zone the test writes: one name, its addresses, and how often it was asked.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// A name server on a port of its own.
#[derive(Debug)]
pub(crate) struct Dns {
    pub(crate) address: SocketAddr,
    zone: Arc<Zone>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Zone {
    says: Mutex<Says>,
    queries: AtomicUsize,
}

/// What the name server says when it is asked.
#[derive(Clone, Debug, Default)]
pub(crate) enum Says {
    /// Not a word.
    #[default]
    Nothing,
    /// The name does not exist.
    NoSuchName,
    /// These addresses, good for one second.
    Addresses(Vec<IpAddr>),
}

/// The one name in the zone. With its last dot, no search domain is tried.
pub(crate) const NAME: &str = "peers.test.";

impl Dns {
    pub(crate) async fn start(says: Says) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::<Zone>::default();
        *zone.says.lock().unwrap() = says;
        let shared = zone.clone();
        let serving = tokio::spawn(async move {
            let mut packet = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut packet).await.unwrap();
                shared.queries.fetch_add(1, Ordering::Relaxed);
                let says = shared.says.lock().unwrap().clone();
                if let Some(answer) = answer(&packet[..length], &says) {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        Self {
            address,
            zone,
            task: serving.abort_handle(),
        }
    }

    /// From now on it says something else.
    pub(crate) fn say(&self, says: Says) {
        *self.zone.says.lock().unwrap() = says;
    }

    /// How many questions came.
    pub(crate) fn queries(&self) -> usize {
        self.zone.queries.load(Ordering::Relaxed)
    }

    /// The section that makes a sidecar ask here.
    pub(crate) fn section(&self) -> String {
        format!("dns: {{ servers: ['{}'] }}", self.address)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer to a query (RFC 1035 §4.1) that has one question.
fn answer(query: &[u8], says: &Says) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = query[HEADER..].iter().position(|byte| *byte == 0)?;
    let question = &query[HEADER..HEADER + name + 5];
    let kind = u16::from_be_bytes([question[name + 1], question[name + 2]]);
    let data: Vec<Vec<u8>> = match says {
        Says::Nothing => return None,
        Says::NoSuchName => Vec::new(),
        Says::Addresses(addresses) => addresses
            .iter()
            .filter_map(|address| match (address, kind) {
                (IpAddr::V4(address), 1) => Some(address.octets().to_vec()),
                (IpAddr::V6(address), 28) => Some(address.octets().to_vec()),
                _ => None,
            })
            .collect(),
    };
    // A response, recursion was wanted and is to be had.
    let code = if let Says::NoSuchName = says { 3 } else { 0 };
    let mut answer = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0];
    answer.push(u8::try_from(data.len()).unwrap());
    answer.extend([0; 4]);
    answer.extend(question);
    for data in data {
        // The name of the question, the type, the class IN, and a second to live.
        answer.extend([0xc0, 0x0c]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 1, 0]);
        answer.push(u8::try_from(data.len()).unwrap());
        answer.extend(data);
    }
    Some(answer)
}
