//! Trigger pictures read from the user's files.

use std::path::Path;

use tsbd_data::{Picture, read_rgb};

use crate::parameters::ParameterError;

/// Reads the PNG or JPEG at `path`, which the user gave as parameter `field`. Returns it with its digest.
///
/// The digest is BLAKE3 of the *decoded* picture, 32 hex digits: two files with the same pixels are the same trigger.
/// `expected` is the digest that the parameters carry when they come out of a record; a picture that changed since is
/// refused.
pub fn read(field: &str, path: &str, expected: Option<&str>) -> Result<(Picture, String), ParameterError> {
    let picture = read_rgb(Path::new(path)).map_err(|error| {
        ParameterError::new(field, path, error.to_string(), "give the path of a PNG or JPEG picture")
    })?;
    identified(field, path, picture, expected)
}

/// A picture that was read from `path`, with its digest; refused if it is not the one that `expected` says, as in
/// [`read`].
pub fn identified(
    field: &str,
    path: &str,
    picture: Picture,
    expected: Option<&str>,
) -> Result<(Picture, String), ParameterError> {
    let digest = digest(&picture);
    match expected {
        Some(expected) if expected != digest => Err(ParameterError::new(
            field,
            path,
            format!("the picture is not the one it was (digest {digest}, not {expected})"),
            "put the former picture back, or leave the digest out to use the new one",
        )),
        _ => Ok((picture, digest)),
    }
}

/// `trunc(255 * share)` of shares from 0 to 1, in single precision as numpy and torchvision's ToPILImage compute it.
pub fn to_levels(shares: &[f32]) -> Vec<u8> {
    shares.iter().map(|share| (share * 255.0) as u8).collect()
}

/// Refuses a digest where `field`'s value `source` names no file: it would change nothing but the cell's key.
pub fn refuse_digest(field: &str, source: &str, digest: Option<&str>) -> Result<(), ParameterError> {
    let Some(digest) = digest else { return Ok(()) };
    let reason = format!("`{field}` = {source} is no file, and has no digest");
    Err(ParameterError::new(format!("{field}_digest"), digest, reason, "leave it out"))
}

fn digest(picture: &Picture) -> String {
    let mut hasher = blake3::Hasher::new();
    for side in [picture.height, picture.width] {
        hasher.update(&(side as u64).to_le_bytes());
    }
    hasher.update(&picture.pixels);
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use tsbd_data::write_png;

    use super::*;

    #[test]
    fn a_picture_that_changed_since_its_digest_was_recorded_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trigger.png");
        let name = path.to_str().unwrap();
        write_png(&path, &[7; 12], (2, 2)).unwrap();
        let (picture, recorded) = read("trigger", name, None).unwrap();
        assert_eq!((picture.height, picture.width), (2, 2));
        assert_eq!(read("trigger", name, Some(&recorded)).unwrap().1, recorded);

        write_png(&path, &[8; 12], (2, 2)).unwrap();
        let error = read("trigger", name, Some(&recorded)).unwrap_err();
        assert!(error.reason.contains(&recorded), "{error}");
    }

    #[test]
    fn a_digest_without_a_file_is_refused() {
        refuse_digest("mask", "built-in", None).unwrap();
        let error = refuse_digest("mask", "built-in", Some("0a1b")).unwrap_err();
        assert_eq!((error.field.as_str(), error.way_out.as_str()), ("mask_digest", "leave it out"));
    }

    #[test]
    fn a_missing_picture_is_named() {
        let error = read("trigger", "/nowhere/trigger.png", None).unwrap_err();
        assert_eq!(error.field, "trigger");
        assert!(error.to_string().contains("/nowhere/trigger.png"));
    }
}
