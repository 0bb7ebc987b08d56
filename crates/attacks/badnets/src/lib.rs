//! BadNets: a patch in the corner of the image.
