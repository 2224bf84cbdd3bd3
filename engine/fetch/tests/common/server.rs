//! An HTTP server that answers as a test tells it to, wrongly too.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// What was asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// With the query.
    pub path: String,
    /// First and last byte.
    pub range: Option<(usize, usize)>,
    pub headers: Vec<(String, String)>,
    /// How many there were before it.
    pub number: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An answer. The connection is closed after it.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Bytes after which it ends, whatever was said.
    pub cut: Option<usize>,
    /// Waits at the end, or the cut, until the client has gone.
    pub hang: bool,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// A whole file, without ranges.
    pub fn whole(file: &[u8]) -> Self {
        Self { status: 200, body: file.to_vec(), ..Self::default() }
    }

    /// As a good server answers: the range that was asked for, when the version is the one asked for.
    pub fn of(request: &Request, file: &[u8], etag: &str) -> Self {
        if request.header("if-match").is_some_and(|asked| asked != etag) {
            return Self::status(412);
        }
        Self::careless(request, file, Some(etag))
    }

    /// The same, by a server that looks at no condition.
    pub fn careless(request: &Request, file: &[u8], etag: Option<&str>) -> Self {
        let headers = etag.map(|etag| ("ETag", etag.to_owned())).into_iter().collect();
        let Some((first, last)) = request.range else { return Self { headers, ..Self::whole(file) } };
        if first >= file.len() {
            return Self::status(416);
        }
        let last = last.min(file.len() - 1);
        let reply = Self { status: 206, headers, body: file[first..=last].to_vec(), ..Self::default() };
        reply.with("Content-Range", format!("bytes {first}-{last}/{}", file.len()))
    }

    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// Runs until it is dropped.
pub struct Server {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (asked, stopped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let server = Self { addr, asked: Arc::clone(&asked), stopped: Arc::clone(&stopped) };
        let answer: Arc<Answer> = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                // A client that goes away is no fault of the server's.
                thread::spawn(move || drop(serve(stream, &asked, &*answer)));
            }
        });
        server
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

fn serve(mut stream: TcpStream, asked: &Mutex<Vec<Request>>, answer: &Answer) -> std::io::Result<()> {
    let mut request = read(&stream)?;
    {
        let mut asked = asked.lock().unwrap();
        request.number = asked.len();
        asked.push(request.clone());
    }
    let reply = answer(&request);
    let mut head =
        format!("HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.write_all(&reply.body[..reply.cut.unwrap_or(usize::MAX).min(reply.body.len())])?;
    if reply.hang {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let _ = stream.read(&mut [0; 1])?;
    }
    Ok(())
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut request = Request { path: first.split(' ').nth(1).unwrap_or_default().to_owned(), ..Request::default() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        request.headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    request.range = range.map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()));
    Ok(request)
}
