//! The attacks. (The other registries live where their entries do: `tsbd_defense::DEFENSES`, `tsbd_models::MODELS`,
//! `tsbd_data::DATASETS`; attacks have a crate each, so this is the first place that sees them all.)

use tsbd_attack::AttackEntry;

/// Every attack, in the order of the paper's tables. A new one is a crate in `crates/attacks` and a line here.
pub static ATTACKS: &[&AttackEntry] = &[
    &tsbd_attack::NONE,
    &tsbd_attack_badnets::BADNETS,
    &tsbd_attack_blended::BLENDED,
    &tsbd_attack_input_aware::INPUT_AWARE,
    &tsbd_attack_lf::LF,
    &tsbd_attack_sig::SIG,
    &tsbd_attack_ssba::SSBA,
    &tsbd_attack_trojan::TROJAN,
    &tsbd_attack_wanet::WANET,
];

/// The attack named `name`.
pub fn attack(name: &str) -> Option<&'static AttackEntry> {
    ATTACKS.iter().copied().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tsbd_attack::{LabelRule, Poisoning};
    use tsbd_defense::{DEFENSES, DefenseCommon};

    use super::*;
    use crate::cell::canonical_json;

    #[test]
    fn every_attack_reads_its_canonical_parameters_back() {
        for entry in ATTACKS {
            let attack = (entry.configure)(&Poisoning::default(), json!({})).unwrap();
            let again = entry.from_parameters(&without_nulls(&attack.parameters())).unwrap();
            assert_eq!(canonical_json(&again.parameters()), canonical_json(&attack.parameters()), "{}", entry.name);
        }
    }

    #[test]
    fn a_groundwork_depends_on_its_own_parameters_alone() {
        let usual = Poisoning::default();
        let other = Poisoning { poisoning_ratio: 0.5, labels: LabelRule::AllToAll, ..usual.clone() };
        for entry in ATTACKS {
            let configured = |poisoning| (entry.configure)(poisoning, json!({})).unwrap();
            let attack = configured(&usual);
            let Some(groundwork) = attack.groundwork() else { continue };
            let parameters = canonical_json(&groundwork.parameters());
            // What a Prepare cell knows is enough to make it.
            let again = entry.from_parameters(&without_nulls(&groundwork.parameters())).unwrap();
            assert_eq!(canonical_json(&again.groundwork().unwrap().parameters()), parameters, "{}", entry.name);
            let (other, all) = (configured(&other), attack.parameters());
            assert_eq!(canonical_json(&other.groundwork().unwrap().parameters()), parameters, "{}", entry.name);
            for (field, value) in groundwork.parameters().as_object().unwrap() {
                assert_eq!(all.get(field), Some(value), "{}.{field}", entry.name);
            }
        }
    }

    #[test]
    fn every_defense_reads_its_canonical_parameters_back() {
        for entry in DEFENSES {
            let defense = (entry.configure)(&DefenseCommon::default(), json!({})).unwrap();
            let again = entry.from_parameters(&without_nulls(&defense.parameters())).unwrap();
            assert_eq!(canonical_json(&again.parameters()), canonical_json(&defense.parameters()), "{}", entry.name);
        }
    }

    #[test]
    fn names_are_unique_and_none_is_an_attack_but_no_defense() {
        let mut names: Vec<_> = ATTACKS.iter().map(|entry| entry.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ATTACKS.len());
        assert!(attack("none").is_some() && tsbd_defense::find("none").is_none());
    }

    /// What `cell.toml` keeps of the parameters: TOML has no null.
    fn without_nulls(value: &serde_json::Value) -> serde_json::Value {
        serde_json::from_str(&canonical_json(value)).unwrap()
    }
}
