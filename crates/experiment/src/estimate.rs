//! What a cell costs before anything like it has run, counted in images that go through its network.

use tsbd_analysis::Unlearning;
use tsbd_attack::DatasetFacts;

use crate::cell::{Cell, CellKind};
use crate::plan::Plan;
use crate::registry;

impl Plan {
    /// What the checks of a cell's methods knew of its data set.
    pub fn facts(&self, cell: &Cell) -> Option<&DatasetFacts> {
        self.images.get(&crate::planning::images::name(&cell.dataset)).map(|images| &images.facts)
    }

    /// About how many images go forward and backward through the network in a cell; those that only go forward, as in
    /// evaluations, count a third. `None` for cells of whose cost that says little: groundworks and measurements.
    pub fn image_passes(&self, cell: &Cell) -> Option<f64> {
        let facts = self.facts(cell)?;
        let work = match cell.kind {
            CellKind::Prepare | CellKind::Measure => return None,
            CellKind::Train => {
                let attack = registry::attack(&cell.attack.name)?.from_parameters(&cell.attack.parameters).ok()?;
                attack.image_passes(facts.train_images, cell.training.as_ref()?.epochs)
            }
            CellKind::Defend => {
                let method = cell.defense.as_ref()?;
                let defense = tsbd_defense::find(&method.name)?.from_parameters(&method.parameters).ok()?;
                defense.image_passes(facts)
            }
            CellKind::Unlearn => {
                let parameters = cell.unlearning.as_ref()?.parameters.clone();
                return Some(serde_json::from_value::<Unlearning>(parameters).ok()?.image_passes(facts));
            }
        };
        // Both test sets, once.
        let tested: usize = facts.test_images_per_class.iter().sum();
        Some(work + 2.0 / 3.0 * tested as f64)
    }
}
