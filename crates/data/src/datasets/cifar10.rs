//! CIFAR-10: 60,000 photographs in ten classes, 32 x 32 pixels.
//!
//! A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Read from the official binary version: six files
//! of 10,000 records, each a label byte and three planes (red, green, blue) of 1024 bytes, row by row. The order of images is that
//! of torchvision: `data_batch_1` to `data_batch_5`, then `test_batch` for testing. A smaller number of images means the first
//! ones in this order (which is random with respect to the classes).

use std::path::Path;

use rayon::prelude::*;

use crate::{
    Archive, CHANNELS, DataRoot, Dataset, DatasetEntry, DatasetParameters, Error, Images, Normalization, Official,
    OfficialFile, Result, dataset,
};

/// The registry's entry.
pub(crate) static ENTRY: DatasetEntry = DatasetEntry {
    name: "cifar10",
    title: "CIFAR-10",
    paper: "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    summary: "60,000 photographs of ten kinds of animals and vehicles, 32x32",
    classes: CLASSES.len(),
    train_images: TRAIN_FILES * RECORDS,
    test_images: RECORDS,
    image_size: SIZE,
    official: Some(&OFFICIAL),
    load,
};

static OFFICIAL: Official = Official {
    folder: "cifar-10-batches-bin",
    files: &[
        batch("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
        batch("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
        batch("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
        batch("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
        batch("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
        batch("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    ],
    archive: Archive {
        url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        file_name: "cifar-10-binary.tar.gz",
        sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    },
};

const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const NORMALIZATION: Normalization = Normalization { mean: [0.4914, 0.4822, 0.4465], std: [0.247, 0.243, 0.261] };
const SIZE: usize = 32;
const PLANE: usize = SIZE * SIZE;
const RECORD: usize = 1 + CHANNELS * PLANE;
/// Records of one file.
const RECORDS: usize = 10_000;
const TRAIN_FILES: usize = 5;
const WAY_OUT: &str = "run `tsbd data fetch cifar10` to replace it";

const fn batch(name: &'static str, sha256: &'static str) -> OfficialFile {
    OfficialFile { name, bytes: (RECORD * RECORDS) as u64, sha256 }
}

fn load(parameters: &DatasetParameters, root: &DataRoot) -> Result<Dataset> {
    let train_images = dataset::count("data.train_images", parameters.train_images, ENTRY.train_images)?;
    let test_images = dataset::count("data.test_images", parameters.test_images, ENTRY.test_images)?;
    let folder = OFFICIAL.locate(ENTRY.name, root)?;
    let (train_files, test_files) = OFFICIAL.files.split_at(TRAIN_FILES);
    let (train, test) =
        rayon::join(|| read(&folder, train_files, train_images), || read(&folder, test_files, test_images));
    let size = parameters.image_size.unwrap_or(SIZE);
    let (train, test) = (train?.resized(size), test?.resized(size));
    Ok(Dataset::new(ENTRY.name, train, test, &CLASSES, NORMALIZATION, true))
}

/// The first `count` images of `files`; files that none of them comes from are not read.
fn read(folder: &Path, files: &[OfficialFile], count: usize) -> Result<Images> {
    let mut pixels = vec![0; count * CHANNELS * PLANE];
    let mut labels = vec![0; count];
    pixels.par_chunks_mut(RECORDS * CHANNELS * PLANE).zip(labels.par_chunks_mut(RECORDS)).zip(files).try_for_each(
        |((pixels, labels), file)| {
            let bytes = file.read(folder, WAY_OUT)?;
            decode(&bytes, &folder.join(file.name), pixels, labels)
        },
    )?;
    Ok(Images::new(pixels, labels, (SIZE, SIZE), CLASSES.len()))
}

/// Decodes as many records as `labels` has places, from planes to interleaved channels.
fn decode(bytes: &[u8], file: &Path, pixels: &mut [u8], labels: &mut [u32]) -> Result<()> {
    let places = pixels.chunks_exact_mut(CHANNELS * PLANE).zip(labels);
    for (record, (bytes, (image, label))) in bytes.chunks_exact(RECORD).zip(places).enumerate() {
        *label = u32::from(bytes[0]);
        if *label as usize >= CLASSES.len() {
            let (file, label) = (file.to_path_buf(), *label);
            return Err(Error::Label { file, record, label, classes: CLASSES.len(), way_out: WAY_OUT.to_owned() });
        }
        let (red, others) = bytes[1..].split_at(PLANE);
        let (green, blue) = others.split_at(PLANE);
        for (pixel, ((red, green), blue)) in image.chunks_exact_mut(CHANNELS).zip(red.iter().zip(green).zip(blue)) {
            pixel.copy_from_slice(&[*red, *green, *blue]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::ImageSource;

    /// The real data set, or a visible word that it is not here.
    fn real_folder() -> Option<std::path::PathBuf> {
        let folder = DataRoot::discover(None).find(OFFICIAL.folder);
        if folder.is_none() {
            // Past the capture of `println!`: a skipped test should be seen.
            writeln!(std::io::stderr(), "skipped: CIFAR-10 is not on this machine (run `tsbd data fetch cifar10`)")
                .unwrap();
        }
        folder
    }

    fn record(label: u8, base: u8) -> Vec<u8> {
        let plane = |channel: u8| (0..PLANE).map(move |i| base.wrapping_add(channel * 50).wrapping_add(i as u8));
        std::iter::once(label).chain((0..3).flat_map(plane)).collect()
    }

    #[test]
    fn planes_become_interleaved_channels() {
        let bytes = [record(6, 0), record(9, 7)].concat();
        let (mut pixels, mut labels) = (vec![0; 2 * CHANNELS * PLANE], vec![0; 2]);
        decode(&bytes, Path::new("batch"), &mut pixels, &mut labels).unwrap();
        assert_eq!(labels, [6, 9]);
        assert_eq!(pixels[..6], [0, 50, 100, 1, 51, 101]);
        // Row 1, column 0 of the second image.
        let start = CHANNELS * (PLANE + SIZE);
        assert_eq!(pixels[start..start + 3], [39, 89, 139]);
    }

    #[test]
    fn a_label_above_nine_is_refused_with_file_and_record() {
        let bytes = [record(6, 0), record(10, 0)].concat();
        let (mut pixels, mut labels) = (vec![0; 2 * CHANNELS * PLANE], vec![0; 2]);
        let error = decode(&bytes, Path::new("data_batch_1.bin"), &mut pixels, &mut labels).unwrap_err().to_string();
        assert!(error.starts_with("data_batch_1.bin: record 1 has label 10, but there are only 10 classes"), "{error}");
    }

    #[test]
    fn a_short_file_is_refused_before_anything_is_decoded() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(OFFICIAL.folder);
        fs_err::create_dir(&folder).unwrap();
        fs_err::write(folder.join("data_batch_1.bin"), [0; 100]).unwrap();
        let error = read(&folder, OFFICIAL.files, 1).unwrap_err().to_string();
        assert!(error.contains("data_batch_1.bin: expected 30730000 bytes, found 100"), "{error}");
        assert!(error.contains("tsbd data fetch cifar10"), "{error}");
    }

    #[test]
    fn the_real_files_hold_6000_images_of_each_class_beginning_with_a_frog() {
        let Some(folder) = real_folder() else { return };
        let started = std::time::Instant::now();
        let data = load(&DatasetParameters::new("cifar10"), &DataRoot::new(folder.parent().unwrap())).unwrap();
        println!("CIFAR-10 read, verified and hashed in {:.3} s", started.elapsed().as_secs_f64());
        assert_eq!(data.train.images_per_class(), [5_000; 10]);
        assert_eq!(data.test.images_per_class(), [1_000; 10]);
        // Known from torchvision: the first training images are a frog and a truck, the first test image a cat.
        assert_eq!((data.train.label(0), data.train.label(1), data.test.label(0)), (6, 9, 3));
        assert_eq!(data.class_names[6], "frog");
        assert_eq!(data.train.image(0)[..6], [59, 62, 63, 43, 46, 45]);
    }

    #[test]
    fn fewer_images_are_the_first_ones_and_another_size_is_resized() {
        let Some(folder) = real_folder() else { return };
        let root = DataRoot::new(folder.parent().unwrap());
        let whole =
            DatasetParameters { train_images: Some(10_003), test_images: Some(5), ..DatasetParameters::new("cifar10") };
        let data = load(&whole, &root).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (10_003, 5));
        let second = fs_err::read(folder.join("data_batch_2.bin")).unwrap();
        assert_eq!(data.train.label(10_002), u32::from(second[2 * RECORD]));
        assert_eq!(data.train.image(10_002)[..3], [1, 1 + PLANE, 1 + 2 * PLANE].map(|at| second[2 * RECORD + at]));
        let small = load(&DatasetParameters { image_size: Some(16), ..whole }, &root).unwrap();
        assert_eq!((small.train.height(), small.train.len()), (16, 10_003));
        assert_ne!(small.digest, data.digest);
    }

    #[test]
    fn one_flipped_bit_in_a_real_file_is_refused_with_both_digests() {
        let Some(real) = real_folder() else { return };
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(OFFICIAL.folder);
        fs_err::create_dir(&folder).unwrap();
        let mut bytes = fs_err::read(real.join("data_batch_1.bin")).unwrap();
        bytes[12_345_678] ^= 0x10;
        fs_err::write(folder.join("data_batch_1.bin"), bytes).unwrap();
        match read(&folder, OFFICIAL.files, 1).unwrap_err() {
            Error::WrongDigest { file, expected, found, way_out } => {
                assert!(file.ends_with("cifar-10-batches-bin/data_batch_1.bin"));
                assert_eq!(expected, OFFICIAL.files[0].sha256);
                assert_ne!(found, expected);
                assert!(way_out.contains("tsbd data fetch cifar10"));
            }
            other => panic!("another error: {other}"),
        }
    }
}
