//! Downloads from a hub on this machine's loopback address, into a cache of the usual layout.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use genus_checkpoint::Error;
use genus_checkpoint::hub::{HubOptions, Progress, resolve_with};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone, Default)]
struct Route {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    cut: Option<usize>,
}

/// Method, path, Authorization and Range of a request.
type Seen = (String, String, String, String);

/// A server of fixed answers; its thread ends when the last connection to it, made by `drop`, asks for it.
struct Server {
    address: String,
    routes: Arc<Mutex<HashMap<String, Route>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (routes, seen) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(Mutex::new(Vec::new())));
        let (r, s) = (routes.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serve(stream, &r, &s).is_none() {
                    break;
                }
            }
        });
        Server { address, routes, seen, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn put(&self, path: &str, route: Route) {
        self.routes.lock().unwrap().insert(path.into(), route);
    }

    fn file(&self, path: &str, etag: &str, body: &[u8]) {
        // Answers compressed on the way carry weak etags.
        let weak = if path.ends_with("tokenizer.json") { "W/" } else { "" };
        let headers = vec![("ETag".into(), format!("{weak}\"{etag}\""))];
        self.put(path, Route { status: 200, headers, body: body.to_vec(), cut: None });
    }

    fn repo(&self, id: &str, revision: &str, files: &[&str]) {
        let siblings: Vec<_> = files.iter().map(|f| serde_json::json!({"rfilename": f})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes();
        self.put(&format!("/api/models/{id}/revision/{revision}"), Route { status: 200, body, ..Route::default() });
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = TcpStream::connect(&self.address).and_then(|mut s| s.write_all(b"STOP / HTTP/1.1\r\n\r\n"));
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Answer one request; `None` ends the server.
fn serve(stream: TcpStream, routes: &Mutex<HashMap<String, Route>>, seen: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let Some(Ok(first)) = lines.next() else { return Some(()) };
    let mut words = first.split(' ').map(String::from);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        if let Some((k, v)) = line.split_once(':') {
            headers.insert(k.to_lowercase(), v.trim().to_string());
        }
    }
    if method == "STOP" {
        return None;
    }
    let header = |n: &str| headers.get(n).cloned().unwrap_or_default();
    seen.lock().unwrap().push((method.clone(), path.clone(), header("authorization"), header("range")));
    let missing = Route { status: 404, ..Route::default() };
    let route = routes.lock().unwrap().get(&path).cloned().unwrap_or(missing);
    let from = header("range").strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
    let (status, body) = match from {
        Some(from) if route.status == 200 => (206, &route.body[from..]),
        _ => (route.status, &route.body[..]),
    };
    let mut text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for (k, v) in &route.headers {
        text += &format!("{k}: {v}\r\n");
    }
    let mut out = stream;
    let _ = out.write_all((text + "\r\n").as_bytes());
    if method != "HEAD" {
        let _ = out.write_all(&body[..route.cut.unwrap_or(body.len()).min(body.len())]);
    }
    let _ = out.shutdown(std::net::Shutdown::Write);
    // Wait for the other side, so that nothing it has not read is lost.
    let _ = out.read(&mut [0; 1]);
    Some(())
}

fn sha256(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn options(endpoint: &str, cache: &Path) -> HubOptions {
    HubOptions { endpoint: endpoint.into(), cache: cache.to_path_buf(), token: Some("secret".into()), offline: false }
}

fn get(model: &str, options: &HubOptions) -> (Result<PathBuf, Error>, Vec<String>) {
    let mut events = Vec::new();
    let result = resolve_with(model, options, &mut |p| {
        events.push(match p {
            Progress::Bytes { file, done, total } => format!("{file} {done}/{total:?}"),
            Progress::Done { file } => format!("{file} done"),
            Progress::Cached { reason } => format!("cached: {reason}"),
            _ => String::new(),
        });
    });
    (result, events)
}

fn fail(model: &str, options: &HubOptions) -> String {
    get(model, options).0.unwrap_err().to_string()
}

/// A hub whose large file lies on another host, as the real one's do.
fn hub_and_store(weights: &[u8]) -> (Server, Server) {
    let (hub, store) = (Server::start(), Server::start());
    let files = [
        "config.json",
        "tokenizer.json",
        "README.md",
        "model.safetensors",
        "pytorch_model.bin",
        "../evil",
        "1_Pooling/config.json",
    ];
    hub.repo("own/er.model-1", "main", &files);
    let at = |f: &str| format!("/own/er.model-1/resolve/{COMMIT}/{f}");
    hub.file(&at("config.json"), "aaa1", b"{}");
    hub.file(&at("tokenizer.json"), "aaa2", b"{\"t\":1}");
    hub.file(&at("1_Pooling/config.json"), "aaa3", b"{\"p\":1}");
    let headers = vec![
        ("Location".into(), format!("{}/store/x?sig=1", store.url())),
        ("X-Linked-Etag".into(), format!("\"{}\"", sha256(weights))),
        ("X-Linked-Size".into(), weights.len().to_string()),
    ];
    hub.put(&at("model.safetensors"), Route { status: 302, headers, ..Route::default() });
    store.put("/store/x?sig=1", Route { status: 200, body: weights.to_vec(), ..Route::default() });
    (hub, store)
}

#[test]
fn a_model_is_fetched_once_into_the_usual_layout() {
    let dir = tempfile::tempdir().unwrap();
    let weights: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
    let (mut hub, store) = hub_and_store(&weights);
    let mut options = options(&hub.url(), dir.path());
    let (folder, events) = get("own/er.model-1", &options);
    let folder = folder.unwrap();
    let repo = dir.path().join("models--own--er.model-1");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert_eq!(fs::read_to_string(folder.join("1_Pooling/config.json")).unwrap(), "{\"p\":1}");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(repo.join("blobs").join(sha256(&weights)).is_file() && repo.join("blobs/aaa2").is_file());
    #[cfg(unix)]
    assert_eq!(fs::read_link(folder.join("config.json")).unwrap(), Path::new("../../blobs/aaa1"));
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["1_Pooling", "config.json", "model.safetensors", "tokenizer.json"]);
    let total = weights.len();
    assert!(events.contains(&format!("model.safetensors {total}/Some({total})")), "{events:?}");
    assert!(events.contains(&"config.json done".to_string()));
    // The token goes to the hub and nowhere else.
    assert!(hub.seen().iter().all(|s| s.2 == "Bearer secret"));
    let stored = store.seen();
    assert!(!stored.is_empty() && stored.iter().all(|s| s.2.is_empty()), "{stored:?}");

    // Again: only the list is asked for.
    assert_eq!(get("own/er.model-1@main", &options).0.unwrap(), folder);
    let seen = hub.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    // Without the hub: the cache, with a notice; offline: the cache alone.
    hub.stop();
    let (again, events) = get("own/er.model-1", &options);
    assert_eq!(again.unwrap(), folder);
    assert!(events[0].starts_with("cached: no connection"), "{events:?}");
    options.offline = true;
    assert_eq!(get("own/er.model-1", &options).0.unwrap(), folder);
    assert_eq!(get(&format!("own/er.model-1@{COMMIT}"), &options).0.unwrap(), folder);
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert!(fail("own/er.model-1", &options).contains("without weights"));
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i % 13) as u8).collect();
    let (hub, store) = hub_and_store(&weights);
    let whole = Route { status: 200, body: weights.clone(), ..Route::default() };
    store.put("/store/x?sig=1", Route { cut: Some(100_000), ..whole.clone() });
    let options = options(&hub.url(), dir.path());
    let m = fail("own/er.model-1", &options);
    assert!(m.contains("model.safetensors") && m.contains("is kept"), "{m}");
    assert!(!dir.path().join("models--own--er.model-1/refs/main").exists());
    store.put("/store/x?sig=1", whole);
    store.seen();
    let folder = get("own/er.model-1", &options).0.unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    let range = store.seen()[0].3.clone();
    let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    assert!(from > 0 && from <= 100_000, "{range}");
}

#[test]
fn content_must_match_its_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, store) = hub_and_store(&[1; 1000]);
    store.put("/store/x?sig=1", Route { status: 200, body: vec![2; 1000], ..Route::default() });
    let options = options(&hub.url(), dir.path());
    let m = fail("own/er.model-1", &options);
    assert!(m.contains("SHA-256") && m.contains("thrown away"), "{m}");
    store.put("/store/x?sig=1", Route { status: 200, body: vec![1; 1000], ..Route::default() });
    get("own/er.model-1", &options).0.unwrap();
}

#[test]
fn shards_come_by_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Server::start();
    let shard = "pytorch_model-00001-of-00001.bin";
    hub.repo("o/m", "refs%2Fpr%2F1", &["config.json", "pytorch_model.bin.index.json", shard]);
    let at = |f: &str| format!("/o/m/resolve/{COMMIT}/{f}");
    hub.file(&at("config.json"), "a1", b"{}");
    hub.file(&at("pytorch_model.bin.index.json"), "a2", format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#).as_bytes());
    hub.file(&at(shard), "a3", b"shard");
    let options = options(&hub.url(), dir.path());
    let folder = get("o/m@refs/pr/1", &options).0.unwrap();
    assert_eq!(fs::read(folder.join(shard)).unwrap(), b"shard");
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(get("o/m@refs/pr/1", &offline).0.unwrap(), folder);
    fs::remove_file(folder.join(shard)).unwrap();
    assert!(fail("o/m@refs/pr/1", &offline).contains(&format!("without its shard {shard}")));
}

#[test]
fn what_a_hostile_hub_says_stays_within_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("deep/er/cache");
    let hub = Server::start();
    let at = |f: &str| format!("/o/m/resolve/{COMMIT}/{f}");
    let index = "model.safetensors.index.json";
    hub.repo("o/m", "main", &["config.json", index]);
    hub.file(&at("config.json"), "../../../../evil", b"{}");
    let options = options(&hub.url(), &cache);
    assert!(fail("o/m", &options).contains("etag"));
    hub.file(&at("config.json"), "a1", b"{}");
    hub.file(&at(index), "a2", br#"{"weight_map":{"a":"../../evil.safetensors"}}"#);
    assert!(fail("o/m", &options).contains("../../evil.safetensors"));
    let sha = br#"{"sha":"../../../x","siblings":[{"rfilename":"config.json"},{"rfilename":"model.safetensors"}]}"#;
    let route = |status, body: &[u8]| Route { status, body: body.to_vec(), ..Route::default() };
    hub.put("/api/models/o/m/revision/main", route(200, sha));
    assert!(fail("o/m", &options).contains("a commit was expected"));
    hub.put("/api/models/o/m/revision/main", route(200, b"<html>"));
    assert!(fail("o/m", &options).contains("is this a hub?"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn refusals_say_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = Server::start();
    let options = options(&hub.url(), dir.path());
    let status = |status| hub.put("/api/models/o/m/revision/main", Route { status, ..Route::default() });
    assert!(fail("o/m", &options).contains("404"));
    status(401);
    assert!(fail("o/m", &options).contains("private or gated; the token was not accepted"));
    status(503);
    assert!(fail("o/m", &options).contains("status 503"));
    hub.repo("o/m", "main", &["config.json", "flax_model.msgpack"]);
    assert!(fail("o/m", &options).contains("no weights"));
    hub.put(
        "/api/models/o/m/revision/main",
        Route {
            status: 307,
            headers: vec![("Location".into(), "/api/models/o/m/revision/main".into())],
            ..Route::default()
        },
    );
    assert!(fail("o/m", &options).contains("redirects"));
    hub.stop();
    for offline in [false, true] {
        let m = fail("o/m", &HubOptions { offline, ..options.clone() });
        for part in ["`o/m`", &hub.url(), "a local folder", "HF_HUB_OFFLINE", &dir.path().display().to_string()] {
            assert!(m.contains(part), "`{part}` is not in: {m}");
        }
    }
}

#[test]
fn a_local_folder_wins_and_other_names_are_refused_without_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Server::start();
    let options = options(&hub.url(), &dir.path().join("cache"));
    let folder = dir.path().join("own/model");
    fs::create_dir_all(&folder).unwrap();
    assert_eq!(get(folder.to_str().unwrap(), &options).0.unwrap(), folder);
    fs::write(folder.join("file"), "x").unwrap();
    let file = folder.join("file");
    for bad in ["gpt2", "", "../x", "a/../b", "/no/such", "a\\b", "a/b@../../x", "a/b/c", file.to_str().unwrap()] {
        assert!(matches!(get(bad, &options).0, Err(Error::ModelName { .. })), "{bad}");
    }
    let m = fail("gpt2", &options);
    assert!(m.contains("no folder of that name") && m.contains("owner/name"), "{m}");
    assert!(hub.seen().is_empty());
}
