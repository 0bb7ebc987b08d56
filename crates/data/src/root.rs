//! Where data sets lie on this machine.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The folders in which data sets are looked for, first come first served; downloads go to the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataRoot {
    folders: Vec<PathBuf>,
}

impl DataRoot {
    /// One folder and no other.
    pub fn new(folder: impl Into<PathBuf>) -> DataRoot {
        DataRoot { folders: vec![folder.into()] }
    }

    /// The folder that the user named with `--data`, and no other: a mistyped one is not to be answered with images
    /// from elsewhere. If none was named, `$TSBD_DATA`, then the user's cache: `$XDG_CACHE_HOME/tsbd/datasets`, or
    /// `~/.cache/tsbd/datasets` without that variable.
    pub fn discover(explicit: Option<&Path>) -> DataRoot {
        match explicit {
            Some(folder) => DataRoot::new(folder),
            None => DataRoot::of_environment(|name| env::var_os(name)),
        }
    }

    /// The folders, in the order of search. Never empty.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// The folder that downloads go to.
    pub fn download_folder(&self) -> &Path {
        &self.folders[0]
    }

    /// The first folder that has `name` inside, as the path of `name`.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.candidates(name).find(|path| path.exists())
    }

    /// Every path at which `name` may be, in the order of search.
    pub(crate) fn candidates(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        self.folders.iter().map(move |folder| folder.join(name))
    }

    fn of_environment(variable: impl Fn(&str) -> Option<OsString>) -> DataRoot {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        // Without a home folder, data sets lie beside whatever is run.
        let cache = cache.unwrap_or_else(|| PathBuf::from(".cache")).join("tsbd").join("datasets");
        DataRoot { folders: set("TSBD_DATA").into_iter().chain([cache]).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(variables: &[(&str, &str)]) -> Vec<PathBuf> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        DataRoot::of_environment(find).folders
    }

    #[test]
    fn the_variable_comes_before_the_cache_and_a_named_folder_stands_alone() {
        let variables = [("TSBD_DATA", "/mine"), ("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/me")];
        assert_eq!(folders(&variables), ["/mine", "/cache/tsbd/datasets"].map(PathBuf::from));
        assert_eq!(folders(&variables[2..]), [PathBuf::from("/home/me/.cache/tsbd/datasets")]);
        assert_eq!(DataRoot::discover(Some(Path::new("/given"))).folders(), [PathBuf::from("/given")]);
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let found = folders(&[("TSBD_DATA", ""), ("XDG_CACHE_HOME", ""), ("HOME", "/home/me")]);
        assert_eq!(found, [PathBuf::from("/home/me/.cache/tsbd/datasets")]);
    }

    #[test]
    fn the_first_folder_that_has_the_data_set_wins() {
        let places = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| places.path().join(name));
        fs_err::create_dir_all(second.join("digits")).unwrap();
        let root = DataRoot { folders: vec![first.clone(), second.clone()] };
        assert_eq!(root.find("digits"), Some(second.join("digits")));
        fs_err::create_dir_all(first.join("digits")).unwrap();
        assert_eq!(root.find("digits"), Some(first.join("digits")));
        assert_eq!(root.find("letters"), None);
    }
}
