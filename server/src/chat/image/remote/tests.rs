//! Against stand-ins on loopback, with names and addresses from a stub where real ones would leave this machine.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread::JoinHandle;

/// Answers look-ups from a list, one after the other; the last one again and again.
#[derive(Debug, Clone)]
struct Stub {
    answers: Arc<Mutex<Vec<Vec<SocketAddr>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    fn new(answers: &[&[&str]]) -> Self {
        let parse =
            |list: &&[&str]| list.iter().map(|address| address.parse().expect("an address")).collect();
        Self { answers: Arc::new(Mutex::new(answers.iter().map(parse).collect())), asked: Arc::default() }
    }
}

impl Resolver for Stub {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        self.asked.lock().unwrap().push(uri.host().unwrap_or_default().to_owned());
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        let mut resolved = self.empty();
        answer.iter().for_each(|&address| resolved.push(address));
        if answer.is_empty() { Err(Error::HostNotFound) } else { Ok(resolved) }
    }
}

/// Writes what it is told to whoever connects, and counts them.
struct Origin {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    stopping: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    fn start(answer: impl Fn(&str, &mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (connections, stopping) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (connections, stopping) = (connections.clone(), stopping.clone());
            move || {
                for mut stream in listener.incoming().map_while(Result::ok) {
                    if stopping.load(Relaxed) {
                        return;
                    }
                    connections.fetch_add(1, Relaxed);
                    let mut lines =
                        BufReader::new(stream.try_clone().expect("a handle")).lines().map_while(Result::ok);
                    let path = lines.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned));
                    let path = path.unwrap_or_default();
                    lines.take_while(|line| !line.is_empty()).for_each(drop);
                    answer(&path, &mut stream);
                }
            }
        });
        Self { address, connections, stopping, thread: Some(thread) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stopping.store(true, Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn redirect(status: u16, location: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Origin {
    Origin::start(move |path, stream| drop(stream.write_all(&answer(path))))
}

/// Any host, and loopback allowed.
fn open() -> RemotePolicy {
    RemotePolicy {
        hosts: Hosts::Any,
        addresses: vec!["127.0.0.0/8".parse().unwrap()],
        // A busy machine may be late.
        timeout: Duration::from_secs(300),
        ..RemotePolicy::default()
    }
}

const MAX_BYTES: usize = 100_000;

fn fetch(policy: RemotePolicy, url: &str) -> Result<Vec<u8>, ImageInputError> {
    fetch_with(policy, DefaultResolver::default(), url)
}

fn fetch_with(policy: RemotePolicy, resolver: impl Resolver, url: &str) -> Result<Vec<u8>, ImageInputError> {
    let budget = ByteBudget::new(policy.max_request_bytes);
    RemoteFetcher::with_resolver(policy, MAX_BYTES, resolver).fetch(&Blocking::in_test(), url, &budget)
}

#[test]
fn nothing_is_fetched_unless_it_is_allowed() {
    let origin = serve(|_| ok(b"bytes"));
    let url = origin.url("/a.png");
    let listed = |rule: &str| Hosts::Listed(vec![rule.parse().unwrap()]);
    let closed = RemotePolicy { hosts: Hosts::None, ..open() };
    assert_eq!(fetch(closed, &url), Err(ImageInputError::Remote));
    let elsewhere = RemotePolicy { hosts: listed("example.org"), ..open() };
    assert_eq!(fetch(elsewhere, &url), Err(ImageInputError::HostNotAllowed));
    let no_addresses = RemotePolicy { addresses: Vec::new(), ..open() };
    assert_eq!(fetch(no_addresses, &url), Err(ImageInputError::HostNotAllowed));
    let other_port = RemotePolicy { addresses: vec!["127.0.0.1:1".parse().unwrap()], ..open() };
    assert_eq!(fetch(other_port, &url), Err(ImageInputError::HostNotAllowed));
    assert_eq!(origin.connections(), 0);

    assert_eq!(fetch(open(), &url), Ok(b"bytes".to_vec()));
    let exact = AddressRule::Exact(origin.address);
    let narrow = RemotePolicy { hosts: listed("127.0.0.1"), addresses: vec![exact], ..open() };
    assert_eq!(fetch(narrow, &format!("  {url}#part  ")), Ok(b"bytes".to_vec()));
    assert_eq!(origin.connections(), 2);
}

/// With a look-up that finds loopback for everything: no spelling of a host gets past the list, and no spelling of an address past the
/// check of addresses.
#[test]
fn hostile_urls_are_refused_without_a_connection() {
    let origin = serve(|_| ok(b"secret"));
    let port = origin.address.port();
    let to_origin = Stub::new(&[&[&format!("127.0.0.1:{port}")]]);
    let listed = RemotePolicy { hosts: Hosts::Listed(vec!["good.example".parse().unwrap()]), ..open() };
    #[rustfmt::skip]
    let refused = [
        "http://evil.example/", "http://evil.example\\@good.example/", "http://good.example\\.evil.example/", "http://good.example@evil.example/",
        "http://evil.example@good.example/", "http://user:password@good.example/", "http://good.example:80@evil.example/",
        "http://good.example.evil.example/", "http://evilgood.example/", "http://sub.good.example/", "http://good.example\t.evil.example/",
        "http://good.example\n/", "http://good.example%2eevil.example/", "http://evil.example/http://good.example/", "http://evil.example#good.example",
        "http://evil.example?good.example", "http:///good.example/", "http:good.example/", "http://", "http:/good.example", "http://:80/",
        "http://ｇood.example/", "http://good。example/", "http://good.example\0/", "http://[good.example]/", "ftp://good.example/",
        "file:///etc/passwd", "gopher://good.example/", "//good.example/", "good.example/a.png", "/etc/passwd", "..", "~", "", "blob:http://good.example/",
        "javascript:alert(1)", "http://good.example:99999/", "http://good.example:x/", "http://good.example:-1/",
        "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://0/", "http://localhost/",
        "http://localhost./", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/", "http://[fd00:ec2::254]/", "http://[fe80::1%25eth0]/", "http://10.0.0.1/", "http://0.0.0.0/",
    ];
    for url in refused {
        let outcome = fetch_with(listed.clone(), to_origin.clone(), url);
        let expected = [Err(ImageInputError::HostNotAllowed), Err(ImageInputError::NotAUrl)];
        assert!(expected.contains(&outcome), "{url:?}: {outcome:?}");
    }
    let long = format!("http://good.example/{}", "a".repeat(URL_LEN_MAX));
    assert_eq!(fetch_with(listed.clone(), to_origin.clone(), &long), Err(ImageInputError::NotAUrl));
    assert_eq!(origin.connections(), 0);
    for url in ["http://good.example/", "HTTP://GOOD.example./a?b#c", "http://good.example:81/"] {
        assert_eq!(fetch_with(listed.clone(), to_origin.clone(), url), Ok(b"secret".to_vec()), "{url}");
    }

    // Any host, but public addresses only, whatever the spelling: here the system's own look-up is asked.
    let public = RemotePolicy { hosts: Hosts::Any, ..RemotePolicy::default() };
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "localhost",
        "localhost.",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ] {
        let outcome = fetch(public.clone(), &format!("http://{host}:{port}/"));
        assert_eq!(outcome, Err(ImageInputError::HostNotAllowed), "{host}");
    }
    assert_eq!(origin.connections(), 3);
}

#[test]
fn the_address_that_was_checked_is_the_one_that_is_dialled() {
    let origin = serve(|_| ok(b"bytes"));
    let local = origin.address.to_string();
    // A name that is looked up once: a second look-up would lead to the metadata service.
    let rebinding = Stub::new(&[&[&local], &["169.254.169.254:80"]]);
    assert_eq!(fetch_with(open(), rebinding.clone(), "http://rebind.example/"), Ok(b"bytes".to_vec()));
    assert_eq!(*rebinding.asked.lock().unwrap(), ["rebind.example"]);
    // The next picture of the same host is looked up again, not sent over a connection that was kept.
    let fetcher = RemoteFetcher::with_resolver(open(), MAX_BYTES, Stub::new(&[&[&local], &["10.0.0.1:80"]]));
    let budget = ByteBudget::new(MAX_BYTES);
    let get = || fetcher.fetch(&Blocking::in_test(), "http://rebind.example/", &budget);
    assert_eq!(get(), Ok(b"bytes".to_vec()));
    assert_eq!(get(), Err(ImageInputError::HostNotAllowed));
    // One bad address among good ones is enough.
    for addresses in [["10.0.0.1:80", &local], [&local, "10.0.0.1:80"], [&local, "[::ffff:10.0.0.1]:80"]] {
        let outcome = fetch_with(open(), Stub::new(&[&addresses]), "http://mixed.example/");
        assert_eq!(outcome, Err(ImageInputError::HostNotAllowed));
    }
    // A name that does not exist is told like one that is not allowed.
    assert_eq!(
        fetch_with(open(), Stub::new(&[&[]]), "http://none.example/"),
        Err(ImageInputError::HostNotAllowed)
    );
    assert_eq!(origin.connections(), 2);
}

#[test]
fn redirects_are_checked_like_everything_else() {
    let origin = Arc::new(Mutex::new(String::new()));
    let base = origin.clone();
    let server = serve(move |path| {
        let base = base.lock().unwrap().clone();
        match path {
            "/picture" => ok(b"bytes"),
            "/once" => redirect(302, "/picture"),
            "/relative" => redirect(307, "picture"),
            "/absolute" => redirect(308, &format!("{base}/picture")),
            "/metadata" => redirect(301, "http://169.254.169.254/latest/meta-data/"),
            "/private" => redirect(303, "http://10.0.0.1/"),
            "/name" => redirect(302, "http://localhost.evil.example/"),
            "/file" => redirect(302, "file:///etc/passwd"),
            "/user" => redirect(302, &base.replace("http://", "http://user@")),
            "/nowhere" => b"HTTP/1.1 302 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "/meta" => ok(b"<meta http-equiv=refresh content='0; url=/picture'>"),
            steps => match steps.trim_start_matches('/').parse::<u32>() {
                Ok(0) => ok(b"bytes"),
                Ok(left) => redirect(302, &format!("/{}", left - 1)),
                Err(_) => b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n".to_vec(),
            },
        }
    });
    *origin.lock().unwrap() = server.url("");
    let get = |path: &str| fetch(open(), &server.url(path));
    for path in ["/once", "/relative", "/absolute", "/3"] {
        assert_eq!(get(path), Ok(b"bytes".to_vec()), "{path}");
    }
    assert_eq!(get("/4"), Err(ImageInputError::TooManyRedirects { limit: 3 }));
    for path in ["/metadata", "/private", "/name"] {
        assert_eq!(get(path), Err(ImageInputError::HostNotAllowed), "{path}");
    }
    for path in ["/file", "/user", "/nowhere"] {
        assert!(get(path).is_err(), "{path}");
    }
    // What is in a page is not followed; that it is no picture is found by who decodes it.
    assert_eq!(get("/meta"), Ok(b"<meta http-equiv=refresh content='0; url=/picture'>".to_vec()));
    // To another host that is not on the list.
    let listed = RemotePolicy { hosts: Hosts::Listed(vec!["good.example".parse().unwrap()]), ..open() };
    let stub = Stub::new(&[&[&server.address.to_string()]]);
    assert_eq!(
        fetch_with(listed, stub.clone(), "http://good.example/absolute"),
        Err(ImageInputError::HostNotAllowed)
    );
    assert_eq!(*stub.asked.lock().unwrap(), ["good.example"], "the other one is not even looked up");
}

#[test]
fn answers_that_are_no_picture() {
    let server = serve(|path| match path {
        "/404" => b"HTTP/1.1 404 X\r\nContent-Length: 6\r\n\r\nsecret".to_vec(),
        "/500" => b"HTTP/1.1 500 X\r\nContent-Length: 6\r\n\r\nsecret".to_vec(),
        "/204" => b"HTTP/1.1 204 X\r\n\r\n".to_vec(),
        "/short" => b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nsecret".to_vec(),
        "/garbage" => b"secret secret secret\r\n\r\n".to_vec(),
        _ => Vec::new(),
    });
    let get = |path: &str| fetch(open(), &server.url(path));
    for status in [404, 500, 204] {
        assert_eq!(get(&format!("/{status}")), Err(ImageInputError::RemoteStatus { status }));
    }
    for path in ["/short", "/garbage", "/hangs-up"] {
        assert_eq!(get(path), Err(ImageInputError::RemoteFailed), "{path}");
    }
    // A port that was free a moment ago may be another test's by now; this one is nobody's.
    assert_eq!(fetch(open(), "http://127.0.0.1:1/"), Err(ImageInputError::RemoteFailed));
}

#[test]
fn too_many_bytes_are_refused_when_announced_and_when_they_come() {
    let server = Origin::start(|path, stream| {
        let _ = match path {
            "/exact" => stream.write_all(&ok(&vec![7; MAX_BYTES])),
            "/announced" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n"),
            // Without a length, and without an end.
            _ => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").and_then(|()| {
                loop {
                    stream.write_all(&[7; 4096])?;
                }
            }),
        };
    });
    assert_eq!(fetch(open(), &server.url("/exact")).map(|bytes| bytes.len()), Ok(MAX_BYTES));
    let too_many = Err(ImageInputError::TooManyBytes { bytes: MAX_BYTES + 1, limit: MAX_BYTES });
    assert_eq!(fetch(open(), &server.url("/announced")), too_many);
    assert_eq!(fetch(open(), &server.url("/endless")), too_many);
    // All pictures of a request together.
    let fetcher = RemoteFetcher::new(open(), MAX_BYTES);
    let budget = ByteBudget::new(MAX_BYTES * 3 / 2);
    let get = || fetcher.fetch(&Blocking::in_test(), &server.url("/exact"), &budget).map(|bytes| bytes.len());
    assert_eq!(get(), Ok(MAX_BYTES));
    assert_eq!(get(), Err(ImageInputError::TooManyRemoteBytes { limit: MAX_BYTES * 3 / 2 }));
}

#[test]
fn slow_hosts_are_given_up() {
    let limit = Duration::from_millis(150);
    let server = Origin::start(|path, stream| {
        let pause = Duration::from_millis(20);
        let head: &[u8] = match path {
            "/silent" => b"",
            "/slow-head" => b"HTTP/1.1 200 OK\r\nX: ",
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n",
        };
        // One byte after the other, until the client has had enough.
        let mut sent = stream.write_all(head);
        let mut byte = [0; 1];
        let _ = stream.set_read_timeout(Some(pause));
        loop {
            if path != "/silent" {
                sent = sent.and_then(|()| stream.write_all(b"x"));
            }
            match stream.read(&mut byte) {
                Err(error) if sent.is_ok() && error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    });
    let policy = RemotePolicy { timeout: limit, ..open() };
    for path in ["/silent", "/slow-head", "/slow-body"] {
        // By themselves these hosts never end. On a busy machine the time may be over before the host has an address, which is told otherwise.
        let is_too_slow =
            || fetch(policy.clone(), &server.url(path)) == Err(ImageInputError::RemoteTooSlow { limit });
        assert!((0..20).any(|_| is_too_slow()), "{path}");
    }
}

/// A look-up that does not work.
#[derive(Debug)]
struct Broken(fn() -> Error);

impl Resolver for Broken {
    fn resolve(
        &self,
        _: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        Err(self.0())
    }
}

#[test]
fn look_ups_that_fail_are_told_as_that_where_it_gives_nothing_away() {
    let temporary = || {
        let text = "failed to lookup address information: Temporary failure in name resolution";
        Error::from(std::io::Error::other(text))
    };
    let unknown = || {
        Error::from(std::io::Error::other("failed to lookup address information: Name or service not known"))
    };
    let any = RemotePolicy { hosts: Hosts::Any, ..RemotePolicy::default() };
    let listed = RemotePolicy { hosts: Hosts::Listed(vec!["good.example".parse().unwrap()]), ..any.clone() };
    let get = |policy: &RemotePolicy, error: fn() -> Error| {
        fetch_with(policy.clone(), Broken(error), "http://good.example/")
    };
    let too_slow = Err(ImageInputError::LookUpTooSlow { limit: any.timeout });
    for policy in [&any, &listed] {
        assert_eq!(get(policy, temporary), Err(ImageInputError::LookUpFailed));
        assert_eq!(get(policy, || Error::Timeout(Timeout::Global)), too_slow);
    }
    // Where any host may be named, whether a name exists inside of the network stays untold.
    for error in [unknown, || Error::HostNotFound] {
        assert_eq!(get(&any, error), Err(ImageInputError::HostNotAllowed));
        assert_eq!(get(&listed, error), Err(ImageInputError::LookUpFailed));
    }
}
