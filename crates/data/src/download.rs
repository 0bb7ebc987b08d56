//! One file over HTTP(S), continuing what an earlier attempt left.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use fs_err::{File, OpenOptions};
use ureq::{
    Agent,
    http::{Response, StatusCode, header},
};

use crate::{Error, Result};

/// A server that says nothing for so long is taken to be gone.
const SILENCE: Duration = Duration::from_secs(30);

/// Downloads `url` to the file `part`. What is in `part` already is taken as the beginning of the file and continued with a Range
/// request, as long as the server can; a connection that breaks is taken up again as long as each one brings something.
/// `progress` is told the bytes that are here and those of the whole file, where known.
pub(crate) fn download(
    url: &str,
    part: &Path,
    way_out: &str,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<()> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(SILENCE))
        .timeout_connect(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .build()
        .into();
    let failed = |reason: String| Error::Download { url: url.to_owned(), reason, way_out: way_out.to_owned() };
    loop {
        let before = if part.exists() { fs_err::metadata(part)?.len() } else { 0 };
        let mut request = agent.get(url);
        if before > 0 {
            request = request.header(header::RANGE, format!("bytes={before}-"));
        }
        let mut response = request.call().map_err(|error| failed(error.to_string()))?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if first_byte(&response) == Some(before) => before,
            // Everything is here already; whether it is right, the digest will tell.
            StatusCode::RANGE_NOT_SATISFIABLE if before > 0 => return Ok(()),
            status => return Err(failed(format!("the server answered {status}"))),
        };
        // Opened only now, so that without a network nothing is left behind.
        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        if start == 0 {
            file.set_len(0)?;
        }
        let total = response.body().content_length().map(|length| start + length);
        let (received, broken) = copy(&mut response.body_mut().as_reader(), &mut file, start, total, progress)?;
        file.sync_all()?;
        let reason = match broken {
            Some(reason) => reason,
            None if total.is_none_or(|total| received == total) => return Ok(()),
            None => "the connection closed early".to_owned(),
        };
        if received <= before {
            let size = total.map_or("an unknown number of".to_owned(), |total| total.to_string());
            return Err(failed(format!("{reason} after {received} of {size} bytes")));
        }
    }
}

/// Copies until the end or until reading fails; the second value is then why. Failing to write is an error.
fn copy(
    body: &mut impl Read,
    file: &mut File,
    start: u64,
    total: Option<u64>,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<(u64, Option<String>)> {
    let mut received = start;
    let mut buffer = vec![0; 1 << 16];
    progress(received, total);
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok((received, None)),
            Ok(read) => {
                file.write_all(&buffer[..read])?;
                received += read as u64;
                progress(received, total);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Ok((received, Some(format!("the connection broke ({error})")))),
        }
    }
}

/// The first byte that a partial answer says it contains (`Content-Range: bytes 100-199/200`).
fn first_byte<B>(response: &Response<B>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
