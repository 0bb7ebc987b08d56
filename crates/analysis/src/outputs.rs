//! The outputs of the convolutions whose filters are neurons, batch by batch.

use tsbd_nn::{BatchSource, Mode, Model};
use tsbd_tensor::DType;

use crate::{Error, Neurons};

/// What the layers of a network gave for one batch, each before any batch norm or activation.
pub(crate) struct Outputs {
    /// Number of images.
    pub images: usize,
    /// For each layer of [`Neurons::layers`]: `[images, height, width, filters]` flattened.
    pub layers: Vec<Vec<f32>>,
}

impl Outputs {
    /// The values of one image in a layer: `[height, width, filters]` flattened.
    pub fn of_image(&self, layer: usize, image: usize) -> &[f32] {
        let values = &self.layers[layer];
        let length = values.len() / self.images;
        &values[image * length..][..length]
    }
}

/// The outputs for each batch of the first epoch of `source`, in evaluation mode.
pub(crate) fn outputs<'a>(
    model: &'a Model,
    neurons: &'a Neurons,
    source: &'a dyn BatchSource,
) -> impl Iterator<Item = Result<Outputs, Error>> + 'a {
    let taps: Vec<&str> = neurons.layers().iter().map(|layer| layer.module.as_str()).collect();
    source.epoch(0).map(move |batch| {
        let batch = batch?;
        let (_, found) = model.tapped(&batch.images, Mode::Eval, &taps)?;
        let layers = taps.iter().map(|tap| {
            let flat = found[*tap].flatten_all().and_then(|flat| flat.to_dtype(DType::F32)?.to_vec1::<f32>());
            flat.map_err(|error| Error::Network(error.into()))
        });
        Ok(Outputs { images: batch.len(), layers: layers.collect::<Result<_, Error>>()? })
    })
}
