//! HTTPS servers whose answers break the protocol, directly and through a proxy.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::{Process, can_run, sh};
use torrentfs::internals::http::{HttpClient, HttpLimits, Purpose};
use torrentfs::internals::route::{Bind, Route};

/// Prints its port, and answers each request over TLS.
const SERVER: &str = r#"
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    plain, _ = listener.accept()
    try:
        with context.wrap_socket(plain, server_side=True) as stream:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += stream.recv(4096)
            stream.sendall(b"HTTP/1.2 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    except OSError:
        pass
"#;

/// Starts an HTTP proxy that carries TLS (CONNECT) to any port of this machine. Returns its URL; `tunnels` counts.
fn proxy(tunnels: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let tunnels = tunnels.clone();
            thread::spawn(move || tunnel(client, &tunnels));
        }
    });
    url
}

fn tunnel(client: TcpStream, tunnels: &AtomicUsize) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?).lines().map_while(Result::ok);
    let first = lines.next()?;
    let port = first.strip_prefix("CONNECT localhost:")?.split(' ').next()?;
    let server = TcpStream::connect(("127.0.0.1", port.parse().ok()?)).ok()?;
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    tunnels.fetch_add(1, Ordering::Relaxed);
    (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    std::io::copy(&mut &server, &mut &client).ok().map(drop)
}

#[test]
fn malformed_answers_are_read_over_tls() {
    if !can_run(&["openssl", "python3"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    sh(&format!(
        "cd '{}' && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=root \
         -keyout root.key -out root.pem && openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
         -subj /CN=localhost -keyout key.pem -out request.pem && echo subjectAltName=DNS:localhost > names && openssl \
         x509 -req -in request.pem -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile names -out cert.pem",
        dir.path().display()
    ));
    fs::write(path("server.py"), SERVER).unwrap();
    let mut command = Command::new("python3");
    command.arg(path("server.py")).arg(path("cert.pem")).arg(path("key.pem"));
    let mut server = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let tunnels = Arc::new(AtomicUsize::new(0));
    // In a process of its own, because the root certificates come from its environment.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "tls::in_a_process_with_another_root"])
        .env("SSL_CERT_FILE", path("root.pem"))
        .env("TEST_URL", format!("https://localhost:{}/announce", port.trim()))
        .env("TEST_PROXY", proxy(tunnels.clone()))
        .output()
        .unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    // Each request is sent twice: the first answer shows that the server breaks the protocol.
    assert_eq!(tunnels.load(Ordering::Relaxed), 2);
}

#[tokio::test]
#[ignore = "malformed_answers_are_read_over_tls runs it"]
async fn in_a_process_with_another_root() {
    let var = |name| std::env::var(name).unwrap();
    for proxy in [None, Some(var("TEST_PROXY").parse().unwrap())] {
        let route = Route { proxy, bind: Bind::Anywhere };
        let client = HttpClient::with_route(route, HttpLimits::default()).unwrap();
        let (status, body) = client.get(var("TEST_URL").parse().unwrap(), Purpose::User).await.unwrap();
        assert_eq!((status.as_u16(), body.as_slice()), (200, b"hello".as_slice()));
    }
}
