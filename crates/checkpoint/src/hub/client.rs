//! Requests to the hub.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA256};
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::{HubOptions, Progress};
use crate::error::shorten;
use crate::{Error, config};

/// Longest answer of the hub's interface.
const MAX_ANSWER: u64 = config::MAX_JSON;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 8;

/// Why a download ended.
pub(super) enum Failure {
    /// No answer: the cache may help.
    Unreachable(String),
    /// An answer, but not the file.
    Refused(String),
    /// A trouble on this machine, such as a full disk.
    Local(Box<Error>),
}

impl Failure {
    pub(super) fn local(e: Error) -> Failure {
        Failure::Local(Box::new(e))
    }
}

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: String,
    token: Option<String>,
}

/// What the hub says of a file before it is fetched.
struct Remote {
    etag: String,
    size: Option<u64>,
}

/// `scheme://host:port` of an address.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|s| matches!(*s, "http" | "https"))?;
    Some(format!("{scheme}://{}", uri.authority()?))
}

fn is_loopback(origin: &str) -> bool {
    let host = origin.parse::<Uri>().ok().and_then(|u| u.host().map(String::from)).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|a| a.is_loopback())
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Result<Client, String> {
        let origin = origin(&options.endpoint).ok_or("HF_ENDPOINT is not an http or https address")?;
        let mut builder = Agent::config_builder();
        if is_loopback(&origin) {
            // A proxy (https_proxy and its kin) cannot reach this machine's own addresses.
            builder = builder.proxy(None);
        }
        let agent = builder
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("genus/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Client { agent, endpoint: options.endpoint.clone(), origin, token: options.token.clone() })
    }

    /// One request; the token goes to the hub alone, not to where it redirects.
    fn call(&self, head: bool, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = if head { self.agent.head(url) } else { self.agent.get(url) };
        // The bytes as they are: a compressed answer would have another length and etag.
        request = request.header("Accept-Encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| origin(url).as_ref() == Some(&self.origin)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| match e {
            ureq::Error::BadUri(e) => Failure::Refused(format!("bad address: {e}")),
            e => Failure::Unreachable(format!("no connection ({})", shorten(&e.to_string(), 200))),
        })
    }

    /// Follow redirects. With `stay`, only those within the hub (renamed repositories): the answer is then the hub's own.
    fn follow(&self, head: bool, path: &str, from: u64, stay: bool) -> Result<Response<Body>, Failure> {
        let mut url = format!("{}{path}", self.endpoint);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.call(head, &url, from)?;
            let status = response.status();
            if !status.is_redirection() {
                return self.accept(response);
            }
            let Some(location) = header(&response, "location").map(String::from) else {
                return Err(Failure::Refused(format!("a redirect without an address (status {status})")));
            };
            let next = if location.starts_with('/') && !location.starts_with("//") {
                format!("{}{location}", origin(&url).unwrap_or_default())
            } else {
                location
            };
            if stay && origin(&next).as_ref() != Some(&self.origin) {
                return Ok(response);
            }
            url = next;
        }
        Err(Failure::Refused(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn accept(&self, response: Response<Body>) -> Result<Response<Body>, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = header(&response, "x-error-message").map(|m| format!(": {}", shorten(m, 200))).unwrap_or_default();
        let with = if self.token.is_some() { "the token was not accepted" } else { "it may need a token in HF_TOKEN" };
        Err(match status.as_u16() {
            401 | 403 => {
                Failure::Refused(format!("status {status}{said} (it does not exist, or is private or gated; {with})"))
            }
            404 => Failure::Refused(format!("status {status}{said} (no such model, revision or file)")),
            429 | 500..=599 => Failure::Unreachable(format!("the hub answered with status {status}{said}")),
            _ => Failure::Refused(format!("status {status}{said}")),
        })
    }

    /// An answer of the hub's interface.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let response = self.follow(false, path, 0, true)?;
        let body = response.into_body().into_with_config().limit(MAX_ANSWER).read_to_vec();
        let body = body.map_err(|e| Failure::Unreachable(format!("the answer broke off ({e})")))?;
        serde_json::from_slice(&body)
            .map_err(|e| Failure::Refused(format!("the hub's answer is not what was expected ({e}); is this a hub?")))
    }

    fn describe(&self, path: &str) -> Result<Remote, Failure> {
        let response = self.follow(true, path, 0, true)?;
        let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
        // It becomes a file name.
        if etag.is_empty()
            || etag.len() > 128
            || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            let found = shorten(&etag, 60);
            return Err(Failure::Refused(format!(
                "the hub gives the file {path} the etag `{found}`, expected letters and digits"
            )));
        }
        let length = if response.status().is_success() { header(&response, "content-length") } else { None };
        let size = header(&response, "x-linked-size").or(length).and_then(|s| s.parse().ok());
        Ok(Remote { etag, size })
    }

    /// Fetch a file into `blobs`; gives the blob. What an earlier attempt left is continued.
    pub(super) fn fetch(
        &self,
        path: &str,
        name: &str,
        blobs: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, Failure> {
        let remote = self.describe(path)?;
        let blob = blobs.join(&remote.etag);
        if blob.is_file() {
            return Ok(blob);
        }
        fs::create_dir_all(blobs).map_err(|e| Failure::local(Error::io("create", blobs)(e)))?;
        let part = blobs.join(format!("{}.incomplete", remote.etag));
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&part);
        let mut file = open.map_err(|e| Failure::local(Error::io("open", &part)(e)))?;
        // Another process may be fetching the same file: wait for it.
        file.lock().map_err(|e| Failure::local(Error::io("lock", &part)(e)))?;
        if blob.is_file() {
            return Ok(blob);
        }
        self.fill(path, name, &remote, &mut file, &blob, progress)?;
        file.sync_all().map_err(|e| Failure::local(Error::io("flush", &part)(e)))?;
        fs::rename(&part, &blob).map_err(|e| Failure::local(Error::io("rename", &part)(e)))?;
        Ok(blob)
    }

    fn fill(
        &self,
        path: &str,
        name: &str,
        remote: &Remote,
        file: &mut File,
        blob: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let local = |e| Failure::local(Error::io("read", blob)(e));
        // Large files have the SHA-256 of their content as etag.
        let mut hash = (remote.etag.len() == 64).then(|| Context::new(&SHA256));
        let mut buffer = vec![0u8; 1 << 18];
        let mut done = 0u64;
        if remote.size.is_some() {
            done = file.metadata().map_err(local)?.len();
        }
        let mut whole = remote.size == Some(done) && done > 0;
        if remote.size.is_some_and(|size| done > size) {
            done = 0;
        }
        let mut response = None;
        if !whole {
            let answer = self.follow(false, path, done, false)?;
            if answer.status().as_u16() != 206 {
                done = 0;
            }
            response = Some(answer);
        }
        // What is kept of an earlier attempt counts for the hash.
        file.seek(SeekFrom::Start(0)).map_err(local)?;
        if let Some(hash) = &mut hash {
            let mut old = Read::by_ref(file).take(done);
            loop {
                let n = old.read(&mut buffer).map_err(local)?;
                if n == 0 {
                    break;
                }
                hash.update(buffer.get(..n).unwrap_or_default());
            }
        }
        file.set_len(done).and_then(|()| file.seek(SeekFrom::Start(done))).map_err(local)?;
        if let Some(response) = response {
            let limit = remote.size.map_or(u64::MAX, |s| s.saturating_sub(done).saturating_add(1));
            let mut body = response.into_body().into_with_config().limit(limit).reader();
            loop {
                let n = body.read(&mut buffer).map_err(|e| {
                    Failure::Unreachable(format!(
                        "the connection broke after {done} bytes of {name} ({e}); what is there is kept"
                    ))
                })?;
                if n == 0 {
                    break;
                }
                let piece = buffer.get(..n).unwrap_or_default();
                file.write_all(piece).map_err(|source| {
                    let bytes = remote.size.unwrap_or(done + n as u64);
                    Failure::local(Error::Write { path: blob.to_path_buf(), bytes, written: done, source })
                })?;
                if let Some(hash) = &mut hash {
                    hash.update(piece);
                }
                done += n as u64;
                progress(Progress::Bytes { file: name, done, total: remote.size });
            }
            whole = remote.size.is_none_or(|size| size == done);
        }
        if !whole {
            let size = remote.size.unwrap_or(0);
            return Err(Failure::Unreachable(format!(
                "{name} ended after {done} of {size} bytes; what is there is kept"
            )));
        }
        if let Some(hash) = hash {
            let digest: String = hash.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
            if digest != remote.etag {
                let _ = file.set_len(0);
                let problem =
                    format!("{name} arrived with SHA-256 {digest}, expected {}; it was thrown away", remote.etag);
                return Err(Failure::Refused(problem));
            }
        }
        Ok(())
    }
}
