//! Access to the local network, redirects, proxies and bind addresses.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::http::testing::{Behaviour, Server, raw, serve};

fn limits() -> HttpLimits {
    HttpLimits { body: 64 << 10, redirects: 3, ..HttpLimits::default() }
}

fn client() -> HttpClient {
    HttpClient::with_limits(limits()).unwrap()
}

fn through(proxy: &str) -> HttpClient {
    let route = Route { proxy: Some(proxy.parse().unwrap()), bind: Bind::Anywhere };
    HttpClient::with_route(route, limits()).unwrap()
}

async fn get(client: &HttpClient, url: &str, purpose: Purpose) -> Result<Vec<u8>, RequestError> {
    client.get(url.parse().unwrap(), purpose).await.map(|(_, body)| body)
}

fn redirect_to(location: &str) -> Behaviour {
    raw(&format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"))
}

#[tokio::test]
async fn this_machine_receives_only_the_allowed_requests() {
    let server = Server::start(Behaviour::Body(b"hello".to_vec())).await;
    let client = client();
    for (path, purpose, allowed) in [
        ("/announce?x", Purpose::Announce, true),
        ("/admin?announce", Purpose::Announce, false),
        ("/", Purpose::Announce, false),
        ("/scrape", Purpose::Announce, false),
        ("/scrape?x", Purpose::Scrape, true),
        ("/film.mkv", Purpose::WebSeed, true),
        ("/film.mkv?x", Purpose::WebSeed, false),
        ("/admin?x", Purpose::User, true),
    ] {
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("http://{host}:{}{path}", server.addr.port());
            let expected = if allowed { Ok(b"hello".to_vec()) } else { Err(RequestError::Local) };
            assert_eq!(get(&client, &url, purpose).await, expected, "{url} {purpose:?}");
        }
    }
    assert_eq!(server.requests.borrow().len(), 8);
}

#[tokio::test]
async fn the_local_rule_holds_for_redirects() {
    let target = Server::start(Behaviour::Body(b"target".to_vec())).await;
    for (path, expected) in [
        ("/x/announce.php", Ok(b"target".to_vec())),
        ("/admin", Err(RequestError::Local)),
        ("", Err(RequestError::Local)),
    ] {
        let start = Server::start(redirect_to(&format!("http://{}{path}", target.addr))).await;
        assert_eq!(get(&client(), &start.url(), Purpose::Announce).await, expected);
    }
    assert_eq!(target.requests.borrow().len(), 1);
}

#[tokio::test]
async fn no_redirect_leads_from_a_global_address_into_the_local_network() {
    let internal = Server::start(Behaviour::Body(b"internal".to_vec())).await;
    let blocked = Err(RequestError::Redirect("into the local network"));
    for location in [internal.url(), format!("http://localhost:{}/announce", internal.addr.port())] {
        // The proxy stands in for the internet.
        let internet = Server::start(redirect_to(&location)).await;
        let client = through(&format!("http://{}", internet.addr));
        assert_eq!(get(&client, "http://tracker.example/announce", Purpose::Announce).await, blocked);
        assert_eq!(get(&client, "http://tracker.example/x.torrent", Purpose::User).await, blocked);
        assert_eq!(
            *internet.requests.borrow(),
            ["http://tracker.example/announce", "http://tracker.example/x.torrent"]
        );
        // A URL that is local from the start may redirect to a local one.
        assert_ne!(get(&client, "http://10.0.0.1/announce", Purpose::Announce).await, blocked);
    }
    assert!(internal.requests.borrow().is_empty());
}

#[tokio::test]
async fn names_are_judged_by_their_addresses() {
    let server = Server::start(Behaviour::Body(b"internal".to_vec())).await;
    let client = client();
    let ask = |clients: &Clients| clients.plain.get(format!("http://localhost:{}/", server.addr.port())).send();
    let error = ask(&client.inner.global).await.unwrap_err();
    assert_eq!(client.to_error(error), RequestError::Local);
    assert!(ask(&client.inner.any).await.is_ok());
    assert_eq!(server.requests.borrow().len(), 1);

    let url = |text: &str| text.parse::<Url>().unwrap();
    let chosen = |path: &str, from_global| {
        let (client, url) = (client.clone(), url(&format!("http://tracker.example/{path}")));
        async move {
            let chosen: *const Client = client.client_for(&url, Purpose::Announce, from_global).await.unwrap();
            std::ptr::eq(chosen, &client.inner.global.plain)
        }
    };
    // The client is chosen before the name is resolved, so the choice depends only on the purpose and on earlier
    // redirects.
    assert_eq!((chosen("announce", false).await, chosen("announce", true).await), (false, true));
    assert!(chosen("a.php", false).await);
}

/// Answers a SOCKS 5 client (RFC 1928, 1929), then acts as the destination server. Returns user, password, host and
/// port.
async fn socks(mut stream: TcpStream, verdict: u8) -> Option<(TcpStream, String)> {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.ok()?;
    let mut methods = vec![0; greeting[1].into()];
    stream.read_exact(&mut methods).await.ok()?;
    assert!(greeting[0] == 5 && methods.contains(&2), "{methods:?}");
    stream.write_all(&[5, 2]).await.ok()?;
    assert_eq!(stream.read_u8().await.ok()?, 1);
    let user = string(&mut stream).await?;
    let password = string(&mut stream).await?;
    stream.write_all(&[1, verdict]).await.ok()?;
    let mut request = [0; 4];
    stream.read_exact(&mut request).await.ok()?;
    assert_eq!(request[..3], [5, 1, 0]);
    let host = match request[3] {
        3 => string(&mut stream).await?,
        1 => IpAddr::from(stream.read_u32().await.ok()?.to_be_bytes()).to_string(),
        other => panic!("{other}"),
    };
    let port = stream.read_u16().await.ok()?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.ok()?;
    return Some((stream, format!("{user}:{password}@{host}:{port}")));

    async fn string(stream: &mut TcpStream) -> Option<String> {
        let mut text = vec![0; stream.read_u8().await.ok()?.into()];
        stream.read_exact(&mut text).await.ok()?;
        String::from_utf8(text).ok()
    }
}

/// Starts a SOCKS 5 proxy behind which every address is a server that answers `hello`, but closes TLS connections. Also
/// returns the destinations requested.
async fn start_socks(verdict: u8) -> (SocketAddr, watch::Receiver<Vec<String>>) {
    start_socks_to(verdict, Behaviour::Body(b"hello".to_vec())).await
}

/// The same with servers that behave in another way.
async fn start_socks_to(verdict: u8, behaviour: Behaviour) -> (SocketAddr, watch::Receiver<Vec<String>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (log, asked) = watch::channel(Vec::new());
    let log = Arc::new(log);
    // The task ends with the test's runtime.
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (log, behaviour) = (log.clone(), behaviour.clone());
            tokio::spawn(async move {
                let (stream, to) = socks(stream, verdict).await?;
                let tls = to.ends_with(":443");
                log.send_modify(|asked| asked.push(to));
                if tls {
                    return None;
                }
                serve(stream, behaviour, Arc::new(watch::channel(Vec::new()).0)).await
            });
        }
    });
    (addr, asked)
}

#[tokio::test]
async fn a_socks_proxy_carries_everything_and_resolves_names() {
    let direct = Server::start(Behaviour::Body(b"direct".to_vec())).await;
    let (addr, asked) = start_socks(0).await;
    let client = through(&format!("socks5://me:pass%40word@{addr}"));
    let local = direct.url();
    for url in ["http://tracker.example/announce", "http://tracker.example:8080/a.php?x", &local] {
        assert_eq!(get(&client, url, Purpose::Announce).await.unwrap(), b"hello", "{url}");
    }
    // A host that is local to the proxy is protected in the same way.
    assert_eq!(get(&client, "http://localhost/admin", Purpose::Announce).await, Err(RequestError::Local));
    let expected = ["tracker.example:80".into(), "tracker.example:8080".into(), direct.addr.to_string()];
    assert_eq!(*asked.borrow(), expected.map(|to| format!("me:pass@word@{to}")));
    assert!(direct.requests.borrow().is_empty());
    let https = get(&client, "https://tracker.example/announce", Purpose::Announce).await.unwrap_err();
    assert!(matches!(https, RequestError::Connect(_) | RequestError::Transport(_)), "{https:?}");
    assert_eq!(asked.borrow()[3], "me:pass@word@tracker.example:443");
}

#[tokio::test]
async fn a_failing_proxy_is_an_error_and_is_not_bypassed() {
    let direct = Server::start(Behaviour::Body(b"direct".to_vec())).await;
    let (refusing, _asked) = start_socks(1).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let closed_port = listener.local_addr().unwrap();
    drop(listener);
    for proxy in
        [format!("socks5://me:wrong@{refusing}"), format!("socks5://{closed_port}"), format!("http://{closed_port}")]
    {
        let error = get(&through(&proxy), &direct.url(), Purpose::Announce).await.unwrap_err();
        assert!(matches!(error, RequestError::Connect(_)), "{proxy}: {error:?}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let rejecting = Server::start(raw("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")).await;
    let client = through(&format!("http://{}", rejecting.addr));
    let (status, _) = client.get(direct.url().parse().unwrap(), Purpose::Announce).await.unwrap();
    assert_eq!(status.as_u16(), 407);
    assert!(direct.requests.borrow().is_empty());
}

#[tokio::test]
async fn requests_leave_from_the_bound_address() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let (log, sources) = watch::channel(Vec::new());
    tokio::spawn(async move {
        loop {
            let (stream, from) = listener.accept().await.unwrap();
            log.send_modify(|sources| sources.push(from.ip()));
            serve(stream, Behaviour::Body(b"hello".to_vec()), Arc::new(watch::channel(Vec::new()).0)).await;
        }
    });
    let bound = |text: &str| {
        let route = Route { proxy: None, bind: text.parse().unwrap() };
        HttpClient::with_route(route, limits()).unwrap()
    };
    for from in ["127.0.0.9", "lo"] {
        assert_eq!(get(&bound(from), &url, Purpose::Announce).await.unwrap(), b"hello", "{from}");
    }
    assert_eq!(sources.borrow()[0], IpAddr::from([127, 0, 0, 9]));
    let error = get(&bound("no-such-if"), &url, Purpose::Announce).await.unwrap_err();
    assert!(matches!(error, RequestError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn headers_are_sent_with_each_redirect() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url: Url = format!("http://{}/film", listener.local_addr().unwrap()).parse().unwrap();
    let task = tokio::spawn(async move {
        for answer in ["HTTP/1.1 302 Found\r\nlocation: /other\r\n", "HTTP/1.1 206 Partial\r\n"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            assert!(String::from_utf8(head).unwrap().contains("range: bytes=5-6\r\n"));
            let answer = format!("{answer}connection: close\r\ncontent-length: 2\r\n\r\nab");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let headers = HeaderMap::from_iter([(header::RANGE, header::HeaderValue::from_static("bytes=5-6"))]);
    let response = client().open(url, Purpose::WebSeed, &headers).await.unwrap();
    assert_eq!((response.status().as_u16(), response.url().path()), (206, "/other"));
    assert_eq!(response.bytes().await.unwrap(), "ab");
    task.await.unwrap();
}

/// An answer that hyper refuses.
fn malformed() -> Behaviour {
    raw("HTTP/1.2 200 OK\r\ncontent-length: 5\r\n\r\nhello")
}

#[tokio::test]
async fn malformed_answers_come_by_the_same_route() {
    // Through a SOCKS proxy, which resolves names.
    let direct = Server::start(malformed()).await;
    let (addr, asked) = start_socks_to(0, malformed()).await;
    let client = through(&format!("socks5://me:pass%40word@{addr}"));
    for url in ["http://tracker.example/announce", &direct.url()] {
        assert_eq!(get(&client, url, Purpose::Announce).await.unwrap(), b"hello", "{url}");
    }
    let expected =
        ["tracker.example:80", "tracker.example:80"]
            .map(str::to_owned)
            .into_iter()
            .chain(vec![direct.addr.to_string(); 2]);
    assert_eq!(*asked.borrow(), expected.map(|to| format!("me:pass@word@{to}")).collect::<Vec<_>>());
    assert_eq!(get(&client, "http://localhost/admin", Purpose::Announce).await, Err(RequestError::Local));
    assert!(direct.requests.borrow().is_empty());

    // Through an HTTP proxy, which is sent whole URLs.
    let proxy = Server::start(malformed()).await;
    let client = through(&format!("http://{}", proxy.addr));
    assert_eq!(get(&client, "http://u:p@tracker.example:81/a?b", Purpose::Announce).await.unwrap(), b"hello");
    assert_eq!(*proxy.requests.borrow(), ["http://tracker.example:81/a?b"; 2]);

    // From a local address.
    let route = Route { proxy: None, bind: "127.0.0.9".parse().unwrap() };
    let bound = HttpClient::with_route(route, limits()).unwrap();
    assert_eq!(get(&bound, &direct.url(), Purpose::Announce).await.unwrap(), b"hello");
    let route = Route { proxy: None, bind: "no-such-if".parse().unwrap() };
    let reach = Reach { global_only: false, loopback: true };
    let tolerant = Tolerant::new(route, Duration::from_secs(10), USER_AGENT);
    let url: Url = direct.url().parse().unwrap();
    let error = tolerant.get(&url, &HeaderMap::new(), reach).await.err();
    assert!(matches!(error, Some(RequestError::Connect(_))), "{error:?}");
}

#[tokio::test]
async fn malformed_answers_do_not_open_the_local_network() {
    let server = Server::start(malformed()).await;
    let tolerant = Tolerant::new(Route::default(), Duration::from_secs(10), USER_AGENT);
    let url: Url = format!("http://localhost:{}/", server.addr.port()).parse().unwrap();
    let headers = HeaderMap::new();
    let ask = |global_only| tolerant.get(&url, &headers, Reach { global_only, loopback: true });
    assert_eq!(ask(true).await.err(), Some(RequestError::Local));
    let (response, from) = ask(false).await.unwrap();
    assert_eq!((response.url(), from), (&url, Some(server.addr)));
    assert_eq!(server.requests.borrow().len(), 1);
    // A redirect in such an answer is judged like any other.
    let target = Server::start(Behaviour::Body(b"target".to_vec())).await;
    let location = format!("HTTP/1.2 302 Found\r\nlocation: http://{}/admin\r\ncontent-length: 0\r\n\r\n", target.addr);
    let start = Server::start(raw(&location)).await;
    assert_eq!(get(&client(), &start.url(), Purpose::Announce).await, Err(RequestError::Local));
    assert!(target.requests.borrow().is_empty());
}

#[tokio::test]
async fn locations_in_any_encoding_are_followed() {
    for (location, path) in [
        (b"/caf\xc3\xa9.bin".as_slice(), "/caf%C3%A9.bin"),
        (b"/caf\xe9.bin", "/caf%E9.bin"),
        (b"/a b%20c", "/a%20b%20c"),
        (b"caf\xc3\xa9?x=\xc3\xa9", "/caf%C3%A9?x=%C3%A9"),
    ] {
        let found =
            [b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: ".as_slice(), location, b"\r\n\r\n"].concat();
        let server = Server::start(Behaviour::Raw(found)).await;
        let url = format!("http://{}/f", server.addr);
        let error = get(&client(), &url, Purpose::User).await.unwrap_err();
        assert_eq!(error, RequestError::Redirect("too many times"));
        assert_eq!(server.requests.borrow()[1], path);
    }
}
