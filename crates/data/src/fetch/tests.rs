use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::*;
use crate::{Archive, OfficialFile};

/// How the test's server treats the requests it gets, one after the other; the last one stands for all that follow.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Sends what is asked for.
    Obliging,
    /// Sends so many bytes of what is asked for and hangs up.
    BreaksAfter(usize),
    /// Knows no ranges: sends everything.
    IgnoresRanges,
    /// Knows the file no more.
    NotFound,
}

/// A server on this machine with one file. Keeps the range that each request asked for (0: everything).
struct Server {
    url: &'static str,
    asked: Arc<Mutex<Vec<usize>>>,
}

impl Server {
    fn start(file: Vec<u8>, manners: &'static [Manner]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/things.tar.gz", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for (number, connection) in listener.incoming().enumerate() {
                let manner = manners[number.min(manners.len() - 1)];
                answer(connection.unwrap(), &file, manner, &log);
            }
        });
        Server { url: url.leak(), asked }
    }

    fn asked(&self) -> Vec<usize> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(mut connection: TcpStream, file: &[u8], manner: Manner, log: &Mutex<Vec<usize>>) {
    let lines: Vec<String> =
        BufReader::new(&connection).lines().map(|line| line.unwrap()).take_while(|line| !line.is_empty()).collect();
    let range = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("range").then(|| value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())?
    });
    let asked = range.unwrap_or(0);
    // Before the answer: whoever has it may look at once.
    log.lock().unwrap().push(asked);
    let from = if manner == Manner::IgnoresRanges { 0 } else { asked };
    let head = match manner {
        Manner::NotFound => "404 Not Found\r\nContent-Length: 0".to_owned(),
        _ if from >= file.len() => "416 Range Not Satisfiable\r\nContent-Length: 0".to_owned(),
        _ if from > 0 => {
            let (length, last) = (file.len() - from, file.len() - 1);
            format!(
                "206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: bytes {from}-{last}/{}",
                file.len()
            )
        }
        _ => format!("200 OK\r\nContent-Length: {}", file.len()),
    };
    let body = match manner {
        Manner::NotFound => &[],
        Manner::BreaksAfter(bytes) => &file[from..file.len().min(from + bytes)],
        _ => &file[from.min(file.len())..],
    };
    let _ = connection.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
    let _ = connection.write_all(body);
}

fn hex(bytes: &[u8]) -> &'static str {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>().leak()
}

/// 100,000 bytes that no compression makes small.
fn contents() -> Vec<u8> {
    use rand::Rng;
    let mut bytes = vec![0; 100_000];
    tsbd_nn::Streams::new(0).stream("test", 0).fill_bytes(&mut bytes);
    bytes
}

fn archive_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

fn good_archive() -> Vec<u8> {
    archive_of(&[("things/readme", b"read me"), ("things/one.bin", &contents())])
}

/// A published data set of one file, at `url`, whose archive has the digest of `archive`.
fn official(url: &'static str, archive: &[u8]) -> Official {
    let file = OfficialFile { name: "one.bin", bytes: 100_000, sha256: hex(&contents()) };
    Official {
        folder: "things",
        files: Vec::leak(vec![file]),
        archive: Archive { url, file_name: "things.tar.gz", sha256: hex(archive) },
    }
}

struct Place {
    folder: tempfile::TempDir,
    root: DataRoot,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let root = DataRoot::new(folder.path().join("datasets"));
        Place { folder, root }
    }

    fn part(&self) -> PathBuf {
        self.root.download_folder().join("things.tar.gz.part")
    }

    fn fetch(&self, official: &Official) -> Result<Fetched> {
        fetch_official("things", official, &self.root, None, &mut |_| {})
    }

    /// Asserts that the data set is there as published, and nothing else.
    fn assert_complete(&self) {
        let things = self.root.download_folder().join("things");
        assert_eq!(fs_err::read(things.join("one.bin")).unwrap(), contents());
        assert_eq!(fs_err::read(things.join("readme")).unwrap(), b"read me");
        assert_eq!(fs_err::read_dir(self.root.download_folder()).unwrap().count(), 1, "something was left behind");
    }
}

#[test]
fn a_data_set_is_downloaded_checked_unpacked_and_reported() {
    let (place, archive) = (Place::new(), good_archive());
    let server = Server::start(archive.clone(), &[Manner::Obliging]);
    let official = official(server.url, &archive);
    let mut steps = Vec::new();
    let fetched = fetch_official("things", &official, &place.root, None, &mut |step| steps.push(step)).unwrap();
    assert_eq!(fetched, Fetched::Unpacked(place.root.download_folder().join("things")));
    place.assert_complete();
    let total = archive.len() as u64;
    assert_eq!(steps[0], FetchProgress::Downloading { received: 0, total: Some(total) });
    assert_eq!(
        steps[steps.len() - 3..],
        [
            FetchProgress::Downloading { received: total, total: Some(total) },
            FetchProgress::Checking,
            FetchProgress::Unpacking
        ]
    );
    assert_eq!(place.fetch(&official).unwrap(), Fetched::AlreadyThere(place.root.download_folder().join("things")));
    assert_eq!(server.asked(), [0]);
}

#[test]
fn a_connection_that_breaks_is_continued_from_the_byte_it_broke_at() {
    let (place, archive) = (Place::new(), good_archive());
    let server =
        Server::start(archive.clone(), &[Manner::BreaksAfter(30_000), Manner::BreaksAfter(30_000), Manner::Obliging]);
    place.fetch(&official(server.url, &archive)).unwrap();
    place.assert_complete();
    assert_eq!(server.asked(), [0, 30_000, 60_000]);
}

#[test]
fn a_download_that_an_earlier_run_left_is_continued() {
    let (place, archive) = (Place::new(), good_archive());
    let server =
        Server::start(archive.clone(), &[Manner::BreaksAfter(30_000), Manner::BreaksAfter(0), Manner::Obliging]);
    let official = official(server.url, &archive);
    let error = place.fetch(&official).unwrap_err().to_string();
    assert!(error.contains("after 30000 of") && error.contains("--from FILE"), "{error}");
    assert_eq!(fs_err::read(place.part()).unwrap(), archive[..30_000]);
    place.fetch(&official).unwrap();
    place.assert_complete();
    assert_eq!(server.asked(), [0, 30_000, 30_000]);
}

#[test]
fn a_server_without_ranges_makes_the_download_begin_again() {
    let (place, archive) = (Place::new(), good_archive());
    let server = Server::start(archive.clone(), &[Manner::BreaksAfter(30_000), Manner::IgnoresRanges]);
    place.fetch(&official(server.url, &archive)).unwrap();
    place.assert_complete();
}

#[test]
fn a_download_that_was_complete_but_never_unpacked_is_not_fetched_again() {
    let (place, archive) = (Place::new(), good_archive());
    let server = Server::start(archive.clone(), &[Manner::Obliging]);
    fs_err::create_dir_all(place.root.download_folder()).unwrap();
    fs_err::write(place.part(), &archive).unwrap();
    place.fetch(&official(server.url, &archive)).unwrap();
    place.assert_complete();
    assert_eq!(server.asked(), [archive.len()]);
}

#[test]
fn a_beginning_that_belongs_to_another_file_is_thrown_away_and_fetched_anew() {
    let (place, archive) = (Place::new(), good_archive());
    let server = Server::start(archive.clone(), &[Manner::Obliging]);
    fs_err::create_dir_all(place.root.download_folder()).unwrap();
    fs_err::write(place.part(), [7; 500]).unwrap();
    place.fetch(&official(server.url, &archive)).unwrap();
    place.assert_complete();
    assert_eq!(server.asked(), [500, 0]);
}

#[test]
fn an_archive_that_is_not_the_official_one_is_refused_and_leaves_nothing() {
    let (place, archive) = (Place::new(), good_archive());
    let other = archive_of(&[("things/one.bin", b"something else")]);
    let server = Server::start(other.clone(), &[Manner::Obliging]);
    let error = place.fetch(&official(server.url, &archive)).unwrap_err().to_string();
    for part in ["things.tar.gz", hex(&archive), hex(&other), "--from FILE"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(fs_err::read_dir(place.root.download_folder()).unwrap().count(), 0);
}

#[test]
fn a_missing_address_says_what_to_do() {
    let (place, archive) = (Place::new(), good_archive());
    let server = Server::start(archive.clone(), &[Manner::NotFound]);
    let error = place.fetch(&official(server.url, &archive)).unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("tsbd data fetch things --from FILE"), "{error}");
}

#[test]
fn without_a_network_the_error_names_the_address_and_the_other_way() {
    // A port that was free a moment ago: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}/things.tar.gz").leak();
    let place = Place::new();
    let error = place.fetch(&official(url, &good_archive())).unwrap_err().to_string();
    assert_eq!(fs_err::read_dir(place.root.download_folder()).unwrap().count(), 0);
    assert!(error.contains(&*url) && error.contains("tsbd data fetch things --from FILE"), "{error}");
}

#[test]
fn an_archive_got_elsewhere_is_unpacked_and_kept() {
    let (place, archive) = (Place::new(), good_archive());
    let file = place.folder.path().join("copy.tar.gz");
    fs_err::write(&file, &archive).unwrap();
    let official = official("http://unused.invalid/", &archive);
    fetch_official("things", &official, &place.root, Some(&file), &mut |_| {}).unwrap();
    place.assert_complete();
    assert!(file.exists());
    fs_err::write(&file, &archive[1..]).unwrap();
    fs_err::remove_dir_all(place.root.download_folder()).unwrap();
    let error = fetch_official("things", &official, &place.root, Some(&file), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    assert!(file.exists());
}

#[test]
fn a_damaged_data_set_is_replaced_where_it_lies_and_other_files_stay() {
    let (place, archive) = (Place::new(), good_archive());
    let server = Server::start(archive.clone(), &[Manner::Obliging]);
    let folder = place.root.download_folder().join("things");
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join("one.bin"), "damaged").unwrap();
    fs_err::write(folder.join("readme"), "read me").unwrap();
    fs_err::write(folder.join("notes"), "the user's own").unwrap();
    place.fetch(&official(server.url, &archive)).unwrap();
    assert_eq!(fs_err::read_to_string(folder.join("notes")).unwrap(), "the user's own");
    fs_err::remove_file(folder.join("notes")).unwrap();
    place.assert_complete();
}

#[test]
fn an_archive_without_one_of_the_files_is_refused() {
    let place = Place::new();
    let archive = archive_of(&[("things/readme", b"read me")]);
    let server = Server::start(archive.clone(), &[Manner::Obliging]);
    let error = place.fetch(&official(server.url, &archive)).unwrap_err().to_string();
    assert!(error.contains("the archive has no things/one.bin"), "{error}");
    assert!(!place.root.download_folder().join("things").exists());
}

#[test]
fn a_drawn_data_set_needs_no_download() {
    let error = fetch("shapes", &Place::new().root, None, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("shapes") && error.contains("drawn from a seed"), "{error}");
}
