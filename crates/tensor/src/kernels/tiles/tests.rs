use super::*;

/// Numbers between -1 and 1 that are not round.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2. - 1.
    };
    (0..count).map(|_| next()).collect()
}

/// `a · b` and the sums of the products' absolute values.
fn expected([m, n, k]: [usize; 3], a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32) -> Vec<[f64; 2]> {
    let sums = |row: usize, column: usize| {
        let products = (0..k).map(|step| f64::from(a(row, step)) * f64::from(b(step, column)));
        products.fold([0., 0.], |[sum, size], product| [sum + product, size + product.abs()])
    };
    (0..m * n).map(|index| sums(index / n, index % n)).collect()
}

fn assert_close(found: &[f32], expected: &[[f64; 2]], what: &str) {
    for (found, [sum, size]) in found.iter().zip(expected) {
        assert!((f64::from(*found) - sum).abs() < 2e-5 * size, "{found} for {sum}: {what}");
    }
}

#[test]
fn products_are_those_of_the_definition() {
    if !available() {
        eprintln!("SKIPPED: this machine has no tile registers");
        return;
    }
    for size @ [m, n, k] in
        [[1, 16, 32], [16, 16, 32], [17, 48, 32], [32, 32, 64], [50, 64, 288], [96, 16, 512], [45, 80, 96]]
    {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let sums = expected(size, |row, step| a[row * k + step], |step, column| b[step * n + column]);
        let (mut left, mut right, mut c) = (vec![0.; m * k], vec![0.; k * n], vec![f32::NAN; m * n]);
        // SAFETY: the registers are there, and the vectors have the sizes that are said.
        unsafe {
            left_rows(m, k, a.as_ptr(), left.as_mut_ptr());
            for step in (0..k).step_by(2) {
                for column in (0..n).step_by(SIDE) {
                    let pair = [step, step + 1].map(|step| _mm512_loadu_ps(b[step * n + column..].as_ptr()));
                    store_right(pair, right.as_mut_ptr(), step, column, k);
                }
            }
            product(size, left.as_ptr(), right.as_ptr(), c.as_mut_ptr(), false);
            assert_close(&c, &sums, &format!("{size:?}"));
            product(size, left.as_ptr(), right.as_ptr(), c.as_mut_ptr(), true);
        }
        let twice: Vec<_> = sums.iter().map(|sums| sums.map(|sum| 2. * sum)).collect();
        assert_close(&c, &twice, &format!("{size:?}, added to itself"));

        let mut in_place = a.clone();
        // SAFETY: as above.
        unsafe { left_rows(m, k, in_place.as_ptr(), in_place.as_mut_ptr()) };
        assert!(in_place.iter().map(|x| x.to_bits()).eq(left.iter().map(|x| x.to_bits())));
    }
}

#[test]
fn products_of_columns_are_those_of_the_definition() {
    if !available() {
        eprintln!("SKIPPED: this machine has no tile registers");
        return;
    }
    for size @ [m, n, k] in [[16, 16, 1], [16, 32, 31], [48, 16, 48], [64, 64, 100], [32, 80, 256]] {
        let (a_row, b_row) = (m + 3, n + 16);
        let (a, b) = (numbers(k * a_row, 3), numbers(k * b_row, 4));
        let sums = expected(size, |row, step| a[step * a_row + row], |step, column| b[step * b_row + column]);
        let (mut c, mut scratch) = (vec![f32::NAN; m * n], vec![f32::NAN; Amx::scratch_of_columns(size)]);
        // SAFETY: the registers are there, and the vectors have the sizes that are said.
        unsafe {
            let (factors, strides) = ([a.as_ptr(), b.as_ptr()], [a_row, b_row]);
            Amx::product_of_columns(size, factors, strides, c.as_mut_ptr(), false, scratch.as_mut_ptr());
            assert_close(&c, &sums, &format!("{size:?}"));
            Amx::product_of_columns(size, factors, strides, c.as_mut_ptr(), true, scratch.as_mut_ptr());
        }
        let twice: Vec<_> = sums.iter().map(|sums| sums.map(|sum| 2. * sum)).collect();
        assert_close(&c, &twice, &format!("{size:?}, added to itself"));
    }
}

#[test]
fn what_is_not_finite_and_what_is_large_come_through() {
    if !available() {
        eprintln!("SKIPPED: this machine has no tile registers");
        return;
    }
    let one_product = |x: f32| {
        let mut b = [0.; SIDE * SIDE];
        b[3 * SIDE..4 * SIDE].fill(1.);
        let (mut c, mut scratch) = ([0f32; SIDE * SIDE], vec![0.; Amx::scratch_of_columns([SIDE, SIDE, SIDE])]);
        let mut rows = [0.; SIDE * SIDE];
        rows[3 * SIDE] = x;
        // SAFETY: the registers are there, and the arrays have the sizes that are said.
        unsafe {
            let factors = [rows.as_ptr(), b.as_ptr()];
            Amx::product_of_columns(
                [SIDE, SIDE, SIDE],
                factors,
                [SIDE, SIDE],
                c.as_mut_ptr(),
                false,
                scratch.as_mut_ptr(),
            );
        }
        c[0]
    };
    for bits in [0x7fc0_0000, 0xffff_ffff, 0x7fff_ffff, 0x7f80_0001] {
        assert!(one_product(f32::from_bits(bits)).is_nan(), "{bits:x}");
    }
    // The low part of an infinity is not a number.
    assert!(!one_product(f32::INFINITY).is_finite() && !one_product(f32::NEG_INFINITY).is_finite());
    for x in [1e30, -3e38, 1e-30, 0.] {
        assert!((one_product(x) - x).abs() <= x.abs() * 2f32.powi(-16), "{x}: {}", one_product(x));
    }
}
