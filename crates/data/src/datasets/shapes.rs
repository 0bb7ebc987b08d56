//! Shapes: ten kinds of coloured, textured, jittered shapes on cluttered backgrounds, drawn from a seed at any size.
//!
//! Needs no download, so that everything can be tried and tested anywhere. The class is the outline. A class has a favourite hue too,
//! but hues scatter so far that neighbouring classes share them: colour alone names the class of two images in three at best, the
//! outline that of all. Texture, place, size, tilt, background, distracting marks and noise vary at random. Image `i` of a split depends on
//! (seed, split, i) only and has class `i % 10`: a smaller data set is the beginning of a larger one, and classes are balanced.
//! Everything is computed with the exactly rounded operations of IEEE arithmetic (no sine, no logarithm), so that every machine
//! draws the same pixels.

use rayon::prelude::*;
use tsbd_nn::{RandomStream, Streams};

use crate::{
    CHANNELS, DataRoot, Dataset, DatasetEntry, DatasetParameters, Error, Images, Normalization, Result, dataset,
};

/// The registry's entry.
pub(crate) static ENTRY: DatasetEntry = DatasetEntry {
    name: "shapes",
    title: "Shapes",
    paper: "drawn by this program from a seed",
    summary: "ten kinds of coloured, textured shapes on cluttered backgrounds, any number and size",
    classes: CLASSES.len(),
    train_images: 5_000,
    test_images: 1_000,
    image_size: 32,
    official: None,
    load,
};

const CLASSES: [&str; 10] =
    ["disc", "square", "triangle", "ring", "plus", "saltire", "star", "bar", "crescent", "dumbbell"];
const NORMALIZATION: Normalization = Normalization { mean: [0.5; 3], std: [0.25; 3] };
/// More would not fit the memory of a small machine.
const MOST_IMAGES: usize = 1_000_000;
/// How far, in turns, an image's hue is from its class's favourite at most; favourites are a tenth apart.
const HUE_SCATTER: f64 = 0.075;
/// Samples per pixel and axis where an edge is smoothed.
const SAMPLES: usize = 3;

fn load(parameters: &DatasetParameters, _root: &DataRoot) -> Result<Dataset> {
    let size = parameters.image_size.unwrap_or(ENTRY.image_size);
    let streams = Streams::new(parameters.seed);
    let split = |field, purpose, wanted: Option<usize>, usual| {
        let count = count(field, wanted.unwrap_or(usual))?;
        Ok::<_, Error>(draw(streams, purpose, count, size))
    };
    let train = split("data.train_images", "shapes/train", parameters.train_images, ENTRY.train_images)?;
    let test = split("data.test_images", "shapes/test", parameters.test_images, ENTRY.test_images)?;
    Ok(Dataset::new(ENTRY.name, train, test, &CLASSES, NORMALIZATION, true))
}

fn count(field: &'static str, wanted: usize) -> Result<usize> {
    dataset::count(field, Some(wanted), MOST_IMAGES)
}

fn draw(streams: Streams, purpose: &str, count: usize, size: usize) -> Images {
    let mut pixels = vec![0; count * size * size * CHANNELS];
    pixels.par_chunks_exact_mut(size * size * CHANNELS).enumerate().for_each(|(index, image)| {
        let mut random = streams.stream(purpose, index as u64);
        Scene::draw(index % CLASSES.len(), &mut random).paint(size, &mut random, image);
    });
    let labels = (0..count).map(|index| (index % CLASSES.len()) as u32).collect();
    Images::new(pixels, labels, (size, size), CLASSES.len())
}

type Color = [f64; CHANNELS];

/// Everything about one image but its noise. Coordinates are in 0..1, colours in 0..255.
struct Scene {
    class: usize,
    /// Background colours at the corners top left, top right, bottom left; the plane through them is the background.
    background: [Color; 3],
    marks: Vec<Mark>,
    center: (f64, f64),
    /// Half the shape's extent.
    extent: f64,
    /// Cosine and sine of the tilt.
    tilt: (f64, f64),
    texture: Texture,
    colors: [Color; 2],
    noise: f64,
}

/// A distracting stroke or blob.
struct Mark {
    from: (f64, f64),
    to: (f64, f64),
    radius: f64,
    color: Color,
}

enum Texture {
    Plain,
    Stripes { width: f64 },
    Checks { width: f64 },
    Gradient,
}

impl Scene {
    fn draw(class: usize, random: &mut RandomStream) -> Scene {
        let base = color(random.uniform(), random.uniform_in(0.0, 0.3), random.uniform_in(0.15, 0.85));
        let background = std::array::from_fn(|_| near(base, 40.0, random));
        let marks = (0..1 + random.below(3)).map(|_| Mark::draw(random)).collect();
        let texture = match random.below(4) {
            0 => Texture::Plain,
            1 => Texture::Stripes { width: random.uniform_in(0.25, 0.5) },
            2 => Texture::Checks { width: random.uniform_in(0.3, 0.6) },
            _ => Texture::Gradient,
        };
        let favourite = class as f64 / CLASSES.len() as f64;
        let hue = favourite + random.uniform_in(-HUE_SCATTER, HUE_SCATTER);
        // Both colours of the texture stand out from the background, one bright, the other deeper.
        let mut standing_out = |low: f64, high: f64| loop {
            let candidate = color(hue, random.uniform_in(0.6, 1.0), random.uniform_in(low, high));
            if background.iter().all(|other| distance(&candidate, other) > 80.0) {
                return candidate;
            }
        };
        let colors = [standing_out(0.5, 1.0), standing_out(0.3, 1.0)];
        // The half tangent of the tilt: up to 21 degrees, but 14 for the two crosses, which differ by 45.
        let most = if matches!(CLASSES[class], "plus" | "saltire") { 0.125 } else { 0.1875 };
        let half_tangent = random.uniform_in(-most, most);
        let square = half_tangent * half_tangent;
        Scene {
            class,
            background,
            marks,
            center: (random.uniform_in(0.40, 0.60), random.uniform_in(0.40, 0.60)),
            extent: random.uniform_in(0.28, 0.42),
            tilt: ((1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)),
            texture,
            colors,
            noise: random.uniform_in(4.0, 20.0),
        }
    }

    fn paint(&self, size: usize, random: &mut RandomStream, image: &mut [u8]) {
        let step = 1.0 / (size * SAMPLES) as f64;
        for (at, pixel) in image.chunks_exact_mut(CHANNELS).enumerate() {
            let (row, column) = (at / size, at % size);
            let mut sum = [0.0; CHANNELS];
            for sample in 0..SAMPLES * SAMPLES {
                let x = ((column * SAMPLES + sample % SAMPLES) as f64 + 0.5) * step;
                let y = ((row * SAMPLES + sample / SAMPLES) as f64 + 0.5) * step;
                let color = self.color_at(x, y);
                for channel in 0..CHANNELS {
                    sum[channel] += color[channel];
                }
            }
            for channel in 0..CHANNELS {
                // The sum of two uniform numbers: a triangular distribution, near enough to a bell.
                let noise = self.noise * (random.uniform() + random.uniform() - 1.0);
                pixel[channel] = (sum[channel] / (SAMPLES * SAMPLES) as f64 + noise).clamp(0.0, 255.0) as u8;
            }
        }
    }

    fn color_at(&self, x: f64, y: f64) -> Color {
        let (dx, dy) = ((x - self.center.0) / self.extent, (y - self.center.1) / self.extent);
        let (cosine, sine) = self.tilt;
        let (u, v) = (cosine * dx + sine * dy, cosine * dy - sine * dx);
        if inside(self.class, u, v) {
            return self.texture.color(&self.colors, u, v);
        }
        // The mark drawn last lies on top.
        if let Some(mark) = self.marks.iter().rev().find(|mark| mark.covers(x, y)) {
            return mark.color;
        }
        let [corner, right, below] = &self.background;
        std::array::from_fn(|c| corner[c] + (right[c] - corner[c]) * x + (below[c] - corner[c]) * y)
    }
}

impl Mark {
    fn draw(random: &mut RandomStream) -> Mark {
        let from = (random.uniform(), random.uniform());
        let reach = |at: f64, random: &mut RandomStream| at + random.uniform_in(-0.35, 0.35);
        let to = (reach(from.0, random), reach(from.1, random));
        Mark {
            from,
            to,
            radius: random.uniform_in(0.02, 0.06),
            color: color(random.uniform(), random.uniform(), random.uniform()),
        }
    }

    /// Whether the point is no further than `radius` from the stroke.
    fn covers(&self, x: f64, y: f64) -> bool {
        let (along_x, along_y) = (self.to.0 - self.from.0, self.to.1 - self.from.1);
        let (dx, dy) = (x - self.from.0, y - self.from.1);
        let length = along_x * along_x + along_y * along_y;
        let part = if length > 0.0 { ((dx * along_x + dy * along_y) / length).clamp(0.0, 1.0) } else { 0.0 };
        let (dx, dy) = (dx - part * along_x, dy - part * along_y);
        dx * dx + dy * dy <= self.radius * self.radius
    }
}

impl Texture {
    fn color(&self, [first, second]: &[Color; 2], u: f64, v: f64) -> Color {
        let odd = |at: f64, width: f64| (at / width).floor().rem_euclid(2.0) == 1.0;
        let share = match *self {
            Texture::Plain => 0.0,
            Texture::Stripes { width } => f64::from(u8::from(odd(v, width))),
            Texture::Checks { width } => f64::from(u8::from(odd(u, width) != odd(v, width))),
            Texture::Gradient => ((u + 1.0) / 2.0).clamp(0.0, 1.0),
        };
        std::array::from_fn(|channel| first[channel] + (second[channel] - first[channel]) * share)
    }
}

/// Whether the point `(u, v)` belongs to the shape of `class`, whose extent is about -1..1; `v` points down.
fn inside(class: usize, u: f64, v: f64) -> bool {
    let square = u * u + v * v;
    match CLASSES[class] {
        "disc" => square <= 0.85 * 0.85,
        "square" => u.abs().max(v.abs()) <= 0.78,
        // Equilateral, apex up: three edges at distance 1/2 from the centre.
        "triangle" => v <= 0.5 && u.abs() * 3f64.sqrt() <= v + 1.0,
        "ring" => (0.5 * 0.5..=0.95 * 0.95).contains(&square),
        "plus" => cross(u, v),
        "saltire" => cross((u + v) * std::f64::consts::FRAC_1_SQRT_2, (u - v) * std::f64::consts::FRAC_1_SQRT_2),
        "star" => star(u, v),
        "bar" => u.abs() <= 1.0 && v.abs() <= 0.3,
        "crescent" => square <= 0.95 * 0.95 && (u - 0.45) * (u - 0.45) + v * v > 0.7 * 0.7,
        "dumbbell" => (u.abs() - 0.6) * (u.abs() - 0.6) + v * v <= 0.42 * 0.42,
        other => unreachable!("the class {other} has no outline"),
    }
}

fn cross(u: f64, v: f64) -> bool {
    u.abs().min(v.abs()) <= 0.27 && u.abs().max(v.abs()) <= 0.95
}

/// A five-pointed star, one point up: the points that are beyond at most one of the five lines its edges lie on.
fn star(u: f64, v: f64) -> bool {
    // Cosines and sines of 90, 162, 234, 306 and 18 degrees, `v` turned downwards.
    const TIPS: [(f64, f64); 5] = [
        (0.0, -1.0),
        (-0.951_056_516_295_153_5, -0.309_016_994_374_947_45),
        (-0.587_785_252_292_473_1, 0.809_016_994_374_947_5),
        (0.587_785_252_292_473_1, 0.809_016_994_374_947_5),
        (0.951_056_516_295_153_5, -0.309_016_994_374_947_45),
    ];
    TIPS.iter().filter(|(x, y)| u * x + v * y > 0.34).count() <= 1
}

/// A colour by hue (in turns, any number), saturation and value (both 0..1): a hexagon around the grey axis.
fn color(hue: f64, saturation: f64, value: f64) -> Color {
    std::array::from_fn(|channel| {
        // Distance of the hue from this channel's own, in sixths of a turn: up to 1 full, from 2 on nothing.
        let apart = (hue * 6.0 - 2.0 * channel as f64 + 3.0).rem_euclid(6.0) - 3.0;
        let share = (2.0 - apart.abs()).clamp(0.0, 1.0);
        255.0 * value * (1.0 - saturation * (1.0 - share))
    })
}

fn near(color: Color, spread: f64, random: &mut RandomStream) -> Color {
    color.map(|level| (level + random.uniform_in(-spread, spread)).clamp(0.0, 255.0))
}

fn distance(a: &Color, b: &Color) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageSource;

    fn small(train_images: usize, seed: u64) -> Dataset {
        let parameters = DatasetParameters {
            train_images: Some(train_images),
            test_images: Some(20),
            image_size: Some(16),
            seed,
            ..DatasetParameters::new("shapes")
        };
        load(&parameters, &DataRoot::new("/nowhere")).unwrap()
    }

    #[test]
    fn classes_are_balanced_and_a_smaller_set_is_the_beginning_of_a_larger_one() {
        let (large, less) = (small(200, 0), small(70, 0));
        assert_eq!(large.train.images_per_class(), [20; 10]);
        assert_eq!(less.train.images_per_class(), [7; 10]);
        assert!((0..70).all(|index| large.train.image(index) == less.train.image(index)));
    }

    #[test]
    fn the_seed_decides_everything_and_the_splits_differ() {
        let data = small(20, 0);
        assert_eq!(data.digest, small(20, 0).digest);
        assert_ne!(data.digest, small(20, 1).digest);
        assert_ne!(data.train.pixels(), data.test.pixels());
    }

    /// Results are stored under the digest of their data, so these pixels may never change. Made with this code.
    #[test]
    fn seed_zero_draws_the_same_pixels_for_ever_and_on_every_machine() {
        assert_eq!(small(20, 0).train.digest(), "a5907e9e977d5f284d152b78edac7b32eb0c7d7bce735b24d6405048fb080fb3");
    }

    #[test]
    fn the_number_of_threads_changes_no_pixel() {
        let in_pool = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| small(50, 3).digest)
        };
        assert_eq!(in_pool(1), in_pool(4));
    }

    #[test]
    fn every_outline_covers_a_fair_part_of_its_square_and_no_two_are_alike() {
        let grid = |class| -> Vec<bool> {
            (0..64 * 64).map(|at| inside(class, (at % 64) as f64 / 31.5 - 1.0, (at / 64) as f64 / 31.5 - 1.0)).collect()
        };
        let grids: Vec<Vec<bool>> = (0..CLASSES.len()).map(grid).collect();
        for (class, grid) in grids.iter().enumerate() {
            let share = grid.iter().filter(|&&covered| covered).count() as f64 / grid.len() as f64;
            assert!((0.15..0.7).contains(&share), "{}: {share}", CLASSES[class]);
            for (other, other_grid) in grids.iter().enumerate().skip(class + 1) {
                let differing = grid.iter().zip(other_grid).filter(|(a, b)| a != b).count() as f64 / grid.len() as f64;
                assert!(differing > 0.08, "{} and {}: {differing}", CLASSES[class], CLASSES[other]);
            }
        }
    }

    /// The hue of a pixel in turns, and how far its largest and smallest channels are apart.
    fn hue(pixel: &[u8]) -> (f64, f64) {
        let [red, green, blue] = [0, 1, 2].map(|channel| f64::from(pixel[channel]));
        let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
        let spread = (most - least).max(1.0);
        let sixths = match most {
            _ if most == red => (green - blue) / spread,
            _ if most == green => 2.0 + (blue - red) / spread,
            _ => 4.0 + (red - green) / spread,
        };
        ((sixths / 6.0).rem_euclid(1.0), spread)
    }

    #[test]
    fn colour_helps_but_does_not_tell_the_class() {
        let data = small(2_000, 0);
        let named = (0..data.train.len()).filter(|&index| {
            let pixels = data.train.image(index).chunks_exact(CHANNELS);
            let (hue, _) = pixels.map(hue).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            (hue * 10.0).round() as u32 % 10 == data.train.label(index)
        });
        let share = named.count() as f64 / data.train.len() as f64;
        println!("the most colourful pixel's hue names the class of {:.0} % of the images", share * 100.0);
        assert!((0.4..0.75).contains(&share), "{share}");
    }
}
