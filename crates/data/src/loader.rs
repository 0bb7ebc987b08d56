//! Batches of a source of images: shuffled, cropped, mirrored, normalised.
//!
//! The order of work is torchvision's: crop from black padding, mirror, divide by 255, subtract the mean, divide by the deviation.
//! All random numbers of a batch are drawn before its images are made in parallel, so threads change nothing, and an epoch's numbers
//! depend on the seed, the purpose and the epoch's number alone, so a resumed training sees what an uninterrupted one sees.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use tsbd_nn::{Batch, BatchSource, RandomStream, Streams};

use crate::resident::resident;
use crate::{CHANNELS, Dataset, Error, ImageSource, Normalization, normalization::LevelTable};

/// Random changes of training images that keep their class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augmentation {
    /// Black pixels put around an image before a window of its own size is cut out at random. 0: no cropping.
    pub crop_padding: usize,
    /// Whether every second image, at random, is mirrored left to right.
    pub flip: bool,
}

/// The order in which an epoch goes through its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    Sequential,
    /// In an order of its own for each epoch. The purpose names the random streams `PURPOSE/shuffle` and `PURPOSE/augment`; two
    /// trainings that should not see the same orders need different purposes (or streams).
    Shuffled(String),
}

/// Makes normalised batches `[batch, height, width, channel]` from any source of images.
#[derive(Clone)]
pub struct Loader {
    /// Where images come from. A batch's indices are positions in it.
    pub source: Arc<dyn ImageSource>,
    /// What is subtracted and divided by.
    pub normalization: Normalization,
    /// Random changes; `None` for evaluation. In sequential order they are drawn from the stream `sequential/augment`.
    pub augmentation: Option<Augmentation>,
    /// Images per batch, at least 1; the last batch of an epoch has the rest.
    pub batch_size: usize,
    /// The order of images.
    pub order: Order,
    /// Leave out a last batch that is not full.
    pub drop_last: bool,
    /// The random streams of whoever uses this loader.
    pub streams: Streams,
    /// Where batches are put.
    pub device: Device,
}

impl Loader {
    /// For training: shuffled, augmented as the data set allows, with the last, smaller batch.
    pub fn training(
        source: Arc<dyn ImageSource>,
        dataset: &Dataset,
        batch_size: usize,
        streams: Streams,
        purpose: &str,
    ) -> Loader {
        let order = Order::Shuffled(purpose.to_owned());
        let augmentation = Some(dataset.augmentation());
        let normalization = dataset.normalization;
        Loader {
            source,
            normalization,
            augmentation,
            batch_size,
            order,
            drop_last: false,
            streams,
            device: Device::Cpu,
        }
    }

    /// For measuring: in order, unchanged, all of it.
    pub fn evaluation(source: Arc<dyn ImageSource>, normalization: Normalization, batch_size: usize) -> Loader {
        Loader {
            source,
            normalization,
            augmentation: None,
            batch_size,
            order: Order::Sequential,
            drop_last: false,
            streams: Streams::new(0),
            device: Device::Cpu,
        }
    }

    /// The same loader with batches on another device.
    pub fn on(mut self, device: &Device) -> Loader {
        self.device = device.clone();
        self
    }

    /// The batches of epoch `epoch`, as an iterator of its own: for whoever draws from a second loader step by step.
    pub fn into_epoch(self, epoch: usize) -> impl Iterator<Item = tsbd_nn::Result<Batch>> + 'static {
        let order = if self.batch_size == 0 { vec![] } else { self.order(epoch) };
        let table = self.normalization.table();
        let mut random = self.stream("augment", epoch);
        let refused = (self.batch_size == 0).then(|| {
            Err(tsbd_nn::Error::source(Error::Parameter {
                field: "batch_size",
                value: "0".to_owned(),
                reason: "a batch needs at least one image".to_owned(),
                way_out: "choose 1 or more".to_owned(),
            }))
        });
        let batches = (0..self.batches_per_epoch()).map(move |batch| {
            let begin = batch * self.batch_size;
            let indices = &order[begin..order.len().min(begin + self.batch_size)];
            let placements = self.placements(indices.len(), &mut random);
            if self.device.is_cpu() {
                return self.batch(indices, &table, &placements);
            }
            // A GPU cuts out its batches itself.
            self.cut_out(&resident(&self.source, &self.device)?, indices, &table, &placements)
        });
        refused.into_iter().chain(batches)
    }

    fn stream(&self, use_: &str, epoch: usize) -> RandomStream {
        let purpose = match &self.order {
            Order::Sequential => "sequential",
            Order::Shuffled(purpose) => purpose,
        };
        self.streams.stream(&format!("{purpose}/{use_}"), epoch as u64)
    }

    fn order(&self, epoch: usize) -> Vec<u32> {
        let mut order = match self.order {
            Order::Sequential => (0..self.source.len() as u32).collect(),
            Order::Shuffled(_) => self.stream("shuffle", epoch).permutation(self.source.len()),
        };
        order.truncate(self.images_per_epoch());
        order
    }

    fn placements(&self, count: usize, random: &mut RandomStream) -> Vec<Placement> {
        (0..count).map(|_| Placement::draw(self.augmentation.unwrap_or(Augmentation::NONE), random)).collect()
    }

    fn batch(&self, indices: &[u32], table: &LevelTable, placements: &[Placement]) -> tsbd_nn::Result<Batch> {
        let (height, width) = (self.source.height(), self.source.width());
        let mut values = vec![0f32; indices.len() * height * width * CHANNELS];
        values.par_chunks_exact_mut(height * width * CHANNELS).zip(indices).zip(placements).with_min_len(8).for_each(
            |((values, &index), placement)| {
                placement.place(self.source.image(index as usize), width, table, values);
            },
        );
        let images = Tensor::from_vec(values, (indices.len(), height, width, CHANNELS), &self.device)?;
        self.labelled(images, indices)
    }

    /// [`Self::batch`] from all pixels of the source, wherever they are.
    fn cut_out(
        &self,
        pixels: &Tensor,
        indices: &[u32],
        table: &LevelTable,
        placements: &[Placement],
    ) -> tsbd_nn::Result<Batch> {
        let placements: Vec<tsbd_tensor::Placement> = placements.iter().map(|&placement| placement.into()).collect();
        self.labelled(tsbd_tensor::augment(pixels, indices, &placements, table)?, indices)
    }

    fn labelled(&self, images: Tensor, indices: &[u32]) -> tsbd_nn::Result<Batch> {
        let labels: Vec<u32> = indices.iter().map(|&index| self.source.label(index as usize)).collect();
        let labels = Tensor::from_vec(labels, indices.len(), &self.device)?;
        Ok(Batch { images, labels, indices: indices.to_vec() })
    }
}

impl BatchSource for Loader {
    fn images_per_epoch(&self) -> usize {
        match self.source.len().checked_rem(self.batch_size) {
            Some(rest) if self.drop_last => self.source.len() - rest,
            _ => self.source.len(),
        }
    }

    fn batches_per_epoch(&self) -> usize {
        if self.batch_size == 0 { 0 } else { self.images_per_epoch().div_ceil(self.batch_size) }
    }

    fn epoch<'a>(&'a self, epoch: usize) -> Box<dyn Iterator<Item = tsbd_nn::Result<Batch>> + 'a> {
        Box::new(self.clone().into_epoch(epoch))
    }
}

impl Augmentation {
    const NONE: Augmentation = Augmentation { crop_padding: 0, flip: false };
}

/// Where one image's window lies, as drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placement {
    /// Rows by which the window lies above the image, negative if below: output row `y` shows image row `y - up`.
    up: isize,
    /// Columns by which the window lies left of the image.
    left: isize,
    flip: bool,
}

impl From<Placement> for tsbd_tensor::Placement {
    fn from(Placement { up, left, flip }: Placement) -> Self {
        // Paddings of images: far from the limits of 32 bits.
        Self { up: up as i32, left: left as i32, mirrored: flip }
    }
}

impl Placement {
    fn draw(augmentation: Augmentation, random: &mut RandomStream) -> Placement {
        let padding = augmentation.crop_padding;
        let mut offset = || match padding {
            0 => 0,
            _ => padding as isize - random.below(2 * padding as u64 + 1) as isize,
        };
        let (up, left) = (offset(), offset());
        Placement { up, left, flip: augmentation.flip && random.coin() }
    }

    /// Cuts the window out of `pixels` `[height, width, channel]`, black outside, and writes it mirrored or not.
    fn place(self, pixels: &[u8], width: usize, table: &LevelTable, values: &mut [f32]) {
        let row_length = width * CHANNELS;
        let height = pixels.len() / row_length;
        let black: [f32; CHANNELS] = std::array::from_fn(|channel| table[channel][0]);
        // Output columns that show the image; the first of them shows its column `first - left`.
        let first = self.left.clamp(0, width as isize) as usize;
        let end = (width as isize + self.left).clamp(first as isize, width as isize) as usize;
        for (y, row) in values.chunks_exact_mut(row_length).enumerate() {
            let shown = usize::try_from(y as isize - self.up).ok().filter(|&source| source < height);
            let Some(source) = shown.filter(|_| first < end) else {
                fill(row, black);
                continue;
            };
            let start = source * row_length + (first as isize - self.left) as usize * CHANNELS;
            fill(&mut row[..first * CHANNELS], black);
            fill(&mut row[end * CHANNELS..], black);
            let shown = &pixels[start..start + (end - first) * CHANNELS];
            Normalization::normalize_into(table, shown, &mut row[first * CHANNELS..end * CHANNELS]);
            if self.flip {
                mirror(row);
            }
        }
    }
}

fn fill(row: &mut [f32], color: [f32; CHANNELS]) {
    for pixel in row.chunks_exact_mut(CHANNELS) {
        pixel.copy_from_slice(&color);
    }
}

/// Reverses the order of pixels in a row, keeping that of channels.
fn mirror(row: &mut [f32]) {
    let middle = row.len() / CHANNELS / 2 * CHANNELS;
    let right = row.len() - middle;
    let (left, rest) = row.split_at_mut(right);
    for (left, right) in left.chunks_exact_mut(CHANNELS).zip(rest.rchunks_exact_mut(CHANNELS)) {
        left.swap_with_slice(right);
    }
}

#[cfg(test)]
mod tests;
