//! The data sets themselves: one file each, with its entry for the registry, its reader or painter, and their tests.

pub(crate) mod cifar10;
pub(crate) mod shapes;
