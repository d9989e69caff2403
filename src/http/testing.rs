//! A small HTTP server that misbehaves on request, for the tests of every module that makes requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The answer of a server to every request.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Status 200 and this body.
    Body(Vec<u8>),
    /// Exactly these bytes, then the end of the stream.
    Raw(Vec<u8>),
    /// Exactly these bytes, and the connection stays open.
    Open(Vec<u8>),
    /// These bytes, then others without end.
    Endless(Vec<u8>, &'static [u8]),
    /// No answer at all.
    Hang,
    /// A correct beginning, then a byte from time to time, for ever.
    Drip,
    /// An endless body.
    Flood,
}

/// A server that answers every request in the same way. Ends when dropped.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    /// Paths and queries of the requests so far.
    pub(crate) requests: watch::Receiver<Vec<String>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (log, requests) = watch::channel(Vec::new());
        let log = Arc::new(log);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, behaviour.clone(), log.clone()));
            }
        });
        Self { addr, requests, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/announce?passkey=secret", self.addr)
    }

    /// Waits for the `n`th request, from 0, and returns its path and query.
    pub(crate) async fn request(&mut self, n: usize) -> String {
        self.requests.wait_for(|requests| requests.len() > n).await.unwrap()[n].clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn serve(
    mut stream: TcpStream,
    behaviour: Behaviour,
    log: Arc<watch::Sender<Vec<String>>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    log.send_modify(|requests| requests.push(head.split(' ').nth(1).unwrap().to_owned()));
    match behaviour {
        Behaviour::Raw(bytes) => stream.write_all(&bytes).await.ok()?,
        Behaviour::Body(body) => {
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat()).await.ok()?;
        }
        Behaviour::Open(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            std::future::pending().await
        }
        Behaviour::Endless(start, more) => {
            stream.write_all(&start).await.ok()?;
            let more = more.repeat((64 << 10) / more.len());
            loop {
                stream.write_all(&more).await.ok()?;
            }
        }
        Behaviour::Hang => std::future::pending().await,
        Behaviour::Drip => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nd8:interval").await.ok()?;
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                stream.write_all(b"i").await.ok()?;
            }
        }
        Behaviour::Flood => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n").await.ok()?;
            loop {
                stream.write_all(&[b'd'; 4096]).await.ok()?;
            }
        }
    }
    Some(())
}

pub(crate) fn raw(text: &str) -> Behaviour {
    Behaviour::Raw(text.as_bytes().to_vec())
}
