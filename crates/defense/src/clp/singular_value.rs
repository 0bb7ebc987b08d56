//! The largest singular value of a small matrix, exact to rounding.

/// The largest singular value of `matrix` `[rows, columns]`, row after row.
///
/// The root of the largest eigenvalue of the smaller of `M Mᵀ` and `Mᵀ M`, by Jacobi's rotations in `f64`. (Power
/// iteration would not do: it converges slowly where the two largest are close.) A filter of a convolution has at most
/// `kernel * kernel` columns, so the eigenvalue problem is of 9 rows or so.
pub(super) fn largest_singular_value(matrix: &[f32], rows: usize) -> f64 {
    let columns = matrix.len() / rows.max(1);
    let largest = matrix.iter().fold(0.0, |largest: f64, value| largest.max(f64::from(value.abs())));
    if largest == 0.0 {
        return 0.0;
    }
    // Scaled, so that no square over- or underflows.
    let entry = |row: usize, column: usize| f64::from(matrix[row * columns + column]) / largest;
    let gram = if rows <= columns {
        gram(rows, |a, b| (0..columns).map(|column| entry(a, column) * entry(b, column)).sum())
    } else {
        gram(columns, |a, b| (0..rows).map(|row| entry(row, a) * entry(row, b)).sum())
    };
    largest * largest_eigenvalue(gram).sqrt()
}

fn gram(size: usize, product: impl Fn(usize, usize) -> f64) -> Vec<Vec<f64>> {
    (0..size).map(|a| (0..size).map(|b| product(a, b)).collect()).collect()
}

/// The largest eigenvalue of a symmetric positive semi-definite matrix: sweeps of rotations, each of which makes one pair
/// of entries beside the diagonal 0, until those that are left do not count (G. Golub, C. Van Loan, "Matrix
/// Computations", section 8.5).
fn largest_eigenvalue(mut a: Vec<Vec<f64>>) -> f64 {
    let size = a.len();
    let trace: f64 = (0..size).map(|i| a[i][i]).sum();
    // Convergence is quadratic: a handful of sweeps is enough for these sizes.
    for _ in 0..50 {
        let beside: f64 = (0..size).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j].powi(2)).sum();
        if beside.sqrt() <= f64::EPSILON * trace {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                rotate(&mut a, p, q);
            }
        }
    }
    (0..size).map(|i| a[i][i]).fold(0.0, f64::max)
}

/// The rotation in the plane of `p` and `q` that makes their common entry 0.
fn rotate(a: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = tangent * cosine;
    for row in a.iter_mut() {
        (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
    }
    let (before, after) = a.split_at_mut(q);
    for (x, y) in before[p].iter_mut().zip(&mut after[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

#[cfg(test)]
mod tests {
    use tsbd_nn::{RandomStream, Streams};

    use super::*;

    fn random(rows: usize, columns: usize, stream: &mut RandomStream) -> Vec<f32> {
        (0..rows * columns).map(|_| stream.normal() as f32).collect()
    }

    fn assert_near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance * expected.abs(), "{found}, not {expected}");
    }

    #[test]
    fn a_matrix_made_of_known_singular_values_gives_the_largest_back() {
        let mut stream = Streams::new(0).stream("test", 0);
        for (rows, columns) in [(1, 9), (3, 9), (9, 9), (64, 9), (16, 25), (7, 1), (2, 2)] {
            for case in 0..20 {
                let least = rows.min(columns);
                // Every second case has its two largest values (almost) equal.
                let largest = 0.5 + stream.uniform();
                let value = |number: usize| match number {
                    0 => largest,
                    1 if case % 2 == 0 => largest * (1.0 - 1e-9),
                    _ => largest * 0.9 / number as f64,
                };
                // U diag(values) Vᵀ with orthonormal columns.
                let (left, right) = (orthonormal(rows, least, &mut stream), orthonormal(columns, least, &mut stream));
                let entry = |row: usize, column: usize| -> f64 {
                    (0..least).map(|k| left[k][row] * value(k) * right[k][column]).sum()
                };
                let matrix: Vec<f32> = (0..rows * columns).map(|at| entry(at / columns, at % columns) as f32).collect();
                // Entries are rounded to f32, which moves singular values by at most so much.
                assert_near(largest_singular_value(&matrix, rows), largest, 1e-6);
            }
        }
    }

    /// `count` orthonormal vectors of `length`: Gram and Schmidt on random ones, twice.
    fn orthonormal(length: usize, count: usize, stream: &mut RandomStream) -> Vec<Vec<f64>> {
        let mut vectors: Vec<Vec<f64>> = Vec::new();
        while vectors.len() < count {
            let mut vector: Vec<f64> = (0..length).map(|_| stream.normal()).collect();
            for _ in 0..2 {
                for other in &vectors {
                    let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                    vector.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
                }
            }
            let norm = vector.iter().map(|a| a * a).sum::<f64>().sqrt();
            vectors.push(vector.into_iter().map(|a| a / norm).collect());
        }
        vectors
    }

    #[test]
    fn it_is_between_the_longest_row_and_the_frobenius_norm_and_no_vector_is_stretched_more() {
        let mut stream = Streams::new(1).stream("test", 0);
        for (rows, columns) in [(1, 1), (4, 9), (32, 9), (9, 1), (5, 5)] {
            let matrix = random(rows, columns, &mut stream);
            let found = largest_singular_value(&matrix, rows);
            let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let longest = matrix.chunks_exact(columns).map(norm).fold(0.0, f64::max);
            assert!(longest <= found * (1.0 + 1e-12) && found <= norm(&matrix) * (1.0 + 1e-12));
            for _ in 0..50 {
                let vector = random(columns, 1, &mut stream);
                let image: Vec<f64> = matrix
                    .chunks_exact(columns)
                    .map(|row| row.iter().zip(&vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
                    .collect();
                let stretched = image.iter().map(|value| value * value).sum::<f64>().sqrt() / norm(&vector);
                assert!(stretched <= found * (1.0 + 1e-12), "{stretched} > {found}");
            }
        }
    }

    #[test]
    fn transposing_keeps_it_and_scaling_scales_it_even_to_the_ends_of_the_range() {
        let mut stream = Streams::new(2).stream("test", 0);
        let matrix = random(6, 9, &mut stream);
        let transposed: Vec<f32> = (0..54).map(|at| matrix[at % 6 * 9 + at / 6]).collect();
        let found = largest_singular_value(&matrix, 6);
        assert_near(largest_singular_value(&transposed, 9), found, 1e-14);
        for scale in [-2f32.powi(20), 2f32.powi(-100), 2f32.powi(120)] {
            let scaled: Vec<f32> = matrix.iter().map(|value| value * scale).collect();
            assert_near(largest_singular_value(&scaled, 6), found * f64::from(scale.abs()), 1e-14);
        }
        assert_eq!(largest_singular_value(&[0.0; 18], 2), 0.0);
        assert_eq!(largest_singular_value(&[3.0, 0.0, 0.0, 4.0], 2), 4.0);
    }
}
