//! Blended: a faint picture over the whole image.
