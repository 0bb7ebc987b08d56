use crate::sample::*;
use crate::*;
#[test]
fn show() {
    let t = table(&grid(), &experiment(), &titles()).unwrap();
    for f in [Format::Text, Format::Markdown, Format::Latex, Format::Csv, Format::Json] {
        println!("{}", String::from_utf8(t.render(f, Emphasis::Star).unwrap()).unwrap());
    }
    println!("{}", String::from_utf8(t.render(Format::Text, Emphasis::Bold).unwrap()).unwrap());
    let mut rows = Vec::new();
    for (s, d) in [0.0, 0.01, 0.03].iter().enumerate() {
        for a in ["badnets", "blended"] { for de in ["none", "ft"] {
            if (a, de, s) == ("blended", "ft", 2) { rows.push(missing(a, de, 2)); continue; }
            rows.push(done(a, de, s as u64, &[("acc", 0.9 + d), ("asr", 0.9 - d), ("der", 0.5 + d)])); } }
    }
    let t = table(&rows, &experiment(), &titles()).unwrap();
    for f in [Format::Text, Format::Markdown, Format::Latex, Format::Csv] {
        println!("{}", String::from_utf8(t.render(f, Emphasis::Star).unwrap()).unwrap());
    }
    println!("{}", String::from_utf8(long(&rows).unwrap().render(Format::Text).unwrap()).unwrap());
    println!("{}", String::from_utf8(long(&rows).unwrap().render(Format::Json).unwrap()).unwrap());
}
