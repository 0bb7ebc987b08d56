//! What the process does with memory it no longer needs.

/// Tells the C library's allocator to keep freed pages for later allocations of this process.
///
/// A training step allocates and frees the same large buffers again and again. By default glibc returns
/// each of them to the kernel and gets fresh, zeroed pages the next time, which costs a third of a step.
/// Call it once, at the start of `main`. Returns whether the allocator took the setting; on systems
/// without glibc nothing happens and the answer is `false`.
pub fn keep_freed_pages() -> bool {
    crate::kernels::allocator::keep_freed_pages()
}

/// Gives back to the system what [`keep_freed_pages`] has kept so far. On systems without glibc nothing happens.
pub fn give_back_freed_pages() {
    crate::kernels::allocator::give_back_freed_pages();
}
