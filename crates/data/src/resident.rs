//! The pixels of a source of images on a GPU: moved there when they are first wanted, kept for as long as the source is.
//!
//! Trainings go over one source for many epochs, and a sweep measures all its candidates on two test sets: neither moves them
//! again. A device of Candle's belongs to one thread, so what is kept is kept by thread.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use tsbd_tensor::{Device, Tensor};

use crate::ImageSource;

struct Resident {
    source: Weak<dyn ImageSource>,
    pixels: Tensor,
}

thread_local! {
    static RESIDENTS: RefCell<Vec<Resident>> = const { RefCell::new(Vec::new()) };
}

/// All pixels of `source`, `u8` `[images, height, width, 3]`, on `device`. Those of sources that are gone are freed.
///
/// # Errors
/// If the device has no room for them.
pub(crate) fn resident(source: &Arc<dyn ImageSource>, device: &Device) -> tsbd_tensor::Result<Tensor> {
    RESIDENTS.with_borrow_mut(|residents| {
        residents.retain(|resident| resident.source.strong_count() > 0);
        let is_it = |resident: &&Resident| {
            std::ptr::addr_eq(resident.source.as_ptr(), Arc::as_ptr(source))
                && resident.pixels.device().same_device(device)
        };
        if let Some(resident) = residents.iter().find(is_it) {
            return Ok(resident.pixels.clone());
        }
        let pixels: Vec<u8> = (0..source.len()).flat_map(|index| source.image(index)).copied().collect();
        let pixels = tsbd_tensor::upload(pixels, [source.len(), source.height(), source.width()], device)?;
        residents.push(Resident { source: Arc::downgrade(source), pixels: pixels.clone() });
        Ok(pixels)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Images;

    fn source(level: u8) -> Arc<dyn ImageSource> {
        Arc::new(Images::new(vec![level; 2 * 4 * 4 * 3], vec![0, 1], (4, 4), 2))
    }

    fn levels(tensor: &Tensor) -> Vec<u8> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn pixels_are_moved_once_and_freed_with_their_source() {
        let count = || RESIDENTS.with_borrow(Vec::len);
        let (first, second) = (source(3), source(9));
        let moved = resident(&first, &Device::Cpu).unwrap();
        assert_eq!(moved.dims(), [2, 4, 4, 3]);
        assert_eq!(levels(&moved), [3; 96]);
        assert_eq!(resident(&first, &Device::Cpu).unwrap().id(), moved.id(), "moved again");
        assert_eq!(levels(&resident(&second, &Device::Cpu).unwrap()), [9; 96]);
        assert_eq!(count(), 2);
        drop(first);
        // A source that takes the place of one that is gone is not taken for it.
        let third = source(5);
        assert_eq!(levels(&resident(&third, &Device::Cpu).unwrap()), [5; 96]);
        assert_eq!(count(), 2);
    }
}
