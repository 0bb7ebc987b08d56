//! Arrays in numpy's own file format (`numpy.save`), versions 1 to 3, as far as patterns need it.
//!
//! Strict: the file has to be as long as its header says, so that a cut or foreign file is noticed and no header can ask
//! for more memory than the file has bytes.

use std::path::Path;

/// An array in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Its lengths, outermost first.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Values,
}

/// The values of an array.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// `|u1`.
    Bytes(Vec<u8>),
    /// `<f4`; `<f8` is rounded to it.
    Floats(Vec<f32>),
}

/// Reads the array, or says what is wrong with the file.
pub fn read(path: &Path) -> Result<Array, String> {
    let bytes = fs_err::read(path).map_err(|error| error.to_string())?;
    parse(&bytes).map_err(|reason| format!("{} is no array that can be used: {reason}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Array, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("it does not begin as numpy's files do")?;
    let cut = || "it ends within its header".to_owned();
    let (&[major, _], rest) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
    let (length, rest) = match major {
        1 => rest.split_first_chunk::<2>().map(|(length, rest)| (u16::from_le_bytes(*length) as usize, rest)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest)),
        other => return Err(format!("version {other} of the format is unknown")),
    }
    .ok_or_else(cut)?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    let kind = entry(header, "descr")?.trim_matches(['\'', '"']);
    if entry(header, "fortran_order")? != "False" {
        return Err("its order is column-major; save numpy.ascontiguousarray(array)".to_owned());
    }
    let shape = shape(header)?;
    let size = match kind {
        "|u1" => 1,
        "<f4" => 4,
        "<f8" => 8,
        other => return Err(format!("its type is `{other}`; save it as uint8 or float32")),
    };
    let expected = shape.iter().try_fold(size, |product: usize, length| product.checked_mul(*length));
    if expected != Some(data.len()) {
        return Err(format!("an array of shape {shape:?} and type `{kind}` does not have {} bytes", data.len()));
    }
    let values = match kind {
        "|u1" => Values::Bytes(data.to_vec()),
        "<f4" => Values::Floats(data.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()),
        _ => Values::Floats(data.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value) as f32).collect()),
    };
    Ok(Array { shape, values })
}

/// What follows a key of the header, a Python dictionary of three entries; a tuple is left whole.
fn entry<'a>(header: &'a str, key: &str) -> Result<&'a str, String> {
    let missing = || format!("its header has no `{key}`");
    let (_, rest) = header.split_once(&format!("'{key}'")).ok_or_else(missing)?;
    let value = rest.trim_start().strip_prefix(':').ok_or_else(missing)?.trim_start();
    let end = match value.strip_prefix('(') {
        Some(tuple) => tuple.find(')').map(|end| end + 2),
        None => value.find([',', '}']),
    };
    Ok(value[..end.ok_or_else(missing)?].trim_end())
}

fn shape(header: &str) -> Result<Vec<usize>, String> {
    let text = entry(header, "shape")?;
    let unreadable = || format!("its shape is `{text}`");
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).ok_or_else(unreadable)?;
    let lengths = inner.split(',').map(str::trim).filter(|length| !length.is_empty());
    lengths.map(|length| length.parse().map_err(|_| unreadable())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of version 1 as `numpy.save` writes it.
    pub fn file(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        header.extend(std::iter::repeat_n(' ', 117 - header.len()));
        header.push('\n');
        [b"\x93NUMPY\x01\x00".as_slice(), &118u16.to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn arrays_of_each_type_are_read_with_their_shapes() {
        let bytes = parse(&file("|u1", "(1, 2, 3)", &[1, 2, 3, 4, 5, 255])).unwrap();
        assert_eq!(bytes, Array { shape: vec![1, 2, 3], values: Values::Bytes(vec![1, 2, 3, 4, 5, 255]) });
        let floats = [0.1f32, -2.0].map(f32::to_le_bytes).concat();
        let expected = Array { shape: vec![2], values: Values::Floats(vec![0.1, -2.0]) };
        assert_eq!(parse(&file("<f4", "(2,)", &floats)).unwrap(), expected);
        let doubles = [f64::from(0.1f32), -2.0].map(f64::to_le_bytes).concat();
        assert_eq!(parse(&file("<f8", "(2,)", &doubles)).unwrap(), expected);
    }

    #[test]
    fn every_truncation_and_every_addition_is_noticed() {
        let whole = file("<f4", "(2, 2)", &[0; 16]);
        assert!(parse(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(parse(&[whole.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let refused = |bytes: &[u8]| parse(bytes).unwrap_err();
        assert!(refused(&file("<i4", "(1,)", &[0; 4])).contains("<i4"));
        assert!(refused(&file("|u1", "(4294967296, 4294967296, 3)", &[0; 4])).contains("4294967296"));
        assert!(refused(&file("|u1", "(-1,)", &[0; 4])).contains("-1"));
        let column_major = String::from_utf8_lossy(&file("|u1", "(1,)", &[0])[6..]).replace("False", "True ");
        assert!(refused(&[b"\x93NUMPY".as_slice(), column_major.as_bytes()].concat()).contains("column-major"));
    }
}
