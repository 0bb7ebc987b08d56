//! What a tape promises, whatever the operations on it.

use tsbd_tensor::{Conv2d, Device, Error, Sgd, Tape, Tensor, Var, sgd_step};

fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn read(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_value_used_several_times_gets_the_sum_of_its_gradients() {
    let tape = Tape::new();
    let x = tape.leaf(&tensor(&[2., 3.]));
    // x² + 4x + x, so 2x + 5.
    let y = x.mul(&x).unwrap().add(&x.scale(4.).unwrap()).unwrap().add(&x).unwrap();
    let gradients = tape.backward(&y.sum().unwrap()).unwrap();
    assert_eq!(read(gradients.get(&x).unwrap()), [9., 11.]);
}

#[test]
fn a_shared_gradient_is_not_changed_through_one_of_its_owners() {
    // Both inputs of the addition receive the same tensor; x gets a second contribution, y must not see it.
    let tape = Tape::new();
    let (x, y) = (tape.leaf(&tensor(&[1.])), tape.leaf(&tensor(&[1.])));
    let doubled = x.scale(10.).unwrap();
    let sum = doubled.add(&x.add(&y).unwrap()).unwrap();
    let gradients = tape.backward(&sum.sum().unwrap()).unwrap();
    assert_eq!(read(gradients.get(&x).unwrap()), [11.]);
    assert_eq!(read(gradients.get(&y).unwrap()), [1.]);
}

#[test]
fn constants_and_detached_values_get_no_gradient() {
    let tape = Tape::new();
    let x = tape.leaf(&tensor(&[2.]));
    let constant = Var::constant(tensor(&[5.]));
    let cut = x.detach();
    assert!(x.is_tracked() && !constant.is_tracked() && !cut.is_tracked());
    assert!(!constant.mul(&cut).unwrap().is_tracked());
    let y = x.mul(&constant).unwrap().mul(&cut).unwrap();
    let gradients = tape.backward(&y.sum().unwrap()).unwrap();
    assert_eq!(read(gradients.get(&x).unwrap()), [10.]);
    assert!(gradients.get(&constant).is_none() && gradients.get(&cut).is_none());
}

#[test]
fn a_leaf_nothing_flows_to_has_no_gradient() {
    let tape = Tape::new();
    let (used, unused) = (tape.leaf(&tensor(&[1.])), tape.leaf(&tensor(&[1.])));
    let after = unused.scale(2.).unwrap();
    tape.retain(&after);
    let gradients = tape.backward(&used.sum().unwrap()).unwrap();
    assert!(gradients.get(&used).is_some());
    assert!(gradients.get(&unused).is_none() && gradients.get(&after).is_none());
}

#[test]
fn inner_gradients_are_kept_only_when_asked_for() {
    for retain in [false, true] {
        let tape = Tape::new();
        let x = tape.leaf(&tensor(&[3.]));
        let inner = x.mul(&x).unwrap();
        if retain {
            tape.retain(&inner);
        }
        let y = inner.scale(7.).unwrap().sum().unwrap();
        let mut gradients = tape.backward(&y).unwrap();
        assert_eq!(gradients.take(&inner).map(|gradient| read(&gradient)), retain.then(|| vec![7.]));
        assert!(gradients.get(&inner).is_none(), "taken");
        assert_eq!(read(gradients.get(&x).unwrap()), [42.]);
    }
}

#[test]
fn gradients_can_be_injected_at_inner_values_and_add_up() {
    let tape = Tape::new();
    let x = tape.leaf(&tensor(&[1., 2.]));
    let inner = x.scale(3.).unwrap();
    let output = inner.mul(&inner).unwrap();
    let seeds = [(&output, &tensor(&[1., 1.])), (&inner, &tensor(&[10., 20.])), (&x, &tensor(&[0.5, 0.25]))];
    tape.retain(&inner);
    let gradients = tape.backward_from(&seeds).unwrap();
    // d/dinner = 2·inner + injected; d/dx = 3·d/dinner + injected.
    assert_eq!(read(gradients.get(&inner).unwrap()), [16., 32.]);
    assert_eq!(read(gradients.get(&x).unwrap()), [48.5, 96.25]);
}

#[test]
fn an_image_that_is_constant_costs_the_convolution_no_gradient() {
    let tape = Tape::new();
    let image = Var::constant(Tensor::ones((1, 4, 4, 1), tsbd_tensor::DType::F64, &Device::Cpu).unwrap());
    let weight = tape.leaf(&tensor(&[2.]).reshape((1, 1, 1, 1)).unwrap());
    let y = image.conv2d(&weight, None, Conv2d::default()).unwrap();
    let gradients = tape.backward(&y.sum().unwrap()).unwrap();
    assert_eq!(read(gradients.get(&weight).unwrap()), [16.]);
    assert!(gradients.get(&image).is_none());
}

#[test]
fn a_tape_runs_backward_once() {
    let tape = Tape::new();
    let x = tape.leaf(&tensor(&[1.]));
    let y = x.sum().unwrap();
    tape.clone().backward(&y).unwrap();
    assert!(matches!(x.scale(2.), Err(Error::SpentTape { operation: "scale" })));
    assert!(matches!(tape.backward(&y), Err(Error::SpentTape { .. })));
}

#[test]
fn a_wrong_call_of_backward_does_not_spend_the_tape() {
    let tape = Tape::new();
    let x = tape.leaf(&tensor(&[1., 2.]));
    assert!(matches!(tape.clone().backward(&x), Err(Error::Shape { argument: "loss", .. })));
    let wrong = tape.clone().backward_from(&[(&x, &tensor(&[1.]))]);
    assert!(matches!(wrong, Err(Error::Shape { argument: "seed", .. })));
    let single = Tensor::new(&[1f32, 1.], &Device::Cpu).unwrap();
    assert!(matches!(tape.clone().backward_from(&[(&x, &single)]), Err(Error::DType { argument: "seed", .. })));
    let constant = Var::constant(tensor(&[1.]));
    assert!(matches!(tape.clone().backward(&constant), Err(Error::NotTracked { .. })));
    tape.backward(&x.sum().unwrap()).unwrap();
}

#[test]
fn values_of_two_tapes_cannot_be_mixed() {
    let (first, second) = (Tape::new(), Tape::new());
    let (x, y) = (first.leaf(&tensor(&[1.])), second.leaf(&tensor(&[1.])));
    assert!(matches!(x.add(&y), Err(Error::DifferentTapes { operation: "add" })));
    assert!(matches!(second.clone().backward(&x), Err(Error::DifferentTapes { .. })));
    let gradients = first.backward(&x.sum().unwrap()).unwrap();
    assert!(gradients.get(&y).is_none());
}

#[test]
fn sgd_changes_clones_too_and_refuses_shared_memory() {
    let parameter = tensor(&[1., 2.]);
    let clone = parameter.clone();
    let (velocity, gradient) = (tensor(&[0., 0.]), tensor(&[1., 1.]));
    let options = Sgd { learning_rate: 0.5, momentum: 0.9, weight_decay: 0. };
    sgd_step(&parameter, &velocity, &gradient, options).unwrap();
    assert_eq!(read(&clone), [0.5, 1.5]);
    assert_eq!(read(&velocity), [1., 1.]);
    let shared = sgd_step(&parameter, &clone, &gradient, options);
    assert!(matches!(shared, Err(Error::SharedStorage { first: "parameter", second: "velocity", .. })), "{shared:?}");
}
