use super::*;

fn series(names: &[&str], shape: Shape) -> Vec<Series> {
    names.iter().map(|name| Series { name: (*name).to_owned(), shape }).collect()
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis { label: label.to_owned(), scale }
}

/// All kinds of marks, one panel each.
fn everything() -> Chart {
    let curve = |series: usize, spread: Option<f64>| {
        let points = [0.01, 0.1, 0.5].map(|x| Point { x, y: 90.0 - 40.0 * x - 5.0 * series as f64, spread });
        Mark::Line { series, points: points.to_vec() }
    };
    let dots = (0..200).map(|index| (f64::from(index), f64::from(index * index % 97))).chain([(f64::NAN, 1.0)]);
    let heights = vec![Some((80.0, Some(3.0))), None, Some((12.5, None))];
    let names = ["a", "b < c & d", "c"].map(str::to_owned).to_vec();
    Chart {
        title: "Everything".into(),
        subtitle: "shapes · profile smoke".into(),
        legend: series(&["first", "second"], Shape::Line),
        panels: vec![
            Panel {
                title: "curves".into(),
                x: axis("ratio", Scale::Logarithmic(vec![0.01, 0.1, 0.5])),
                y: axis("ASR (%)", Scale::Linear),
                marks: vec![curve(0, Some(2.0)), curve(1, None)],
                remarks: vec![],
            },
            Panel {
                title: "dots".into(),
                x: axis("x", Scale::Linear),
                y: axis("y", Scale::Linear),
                marks: vec![Mark::Dots { series: 0, points: dots.collect() }],
                remarks: vec!["r = 0.5".into()],
            },
            Panel {
                title: "bars".into(),
                x: axis("", Scale::Names(names)),
                y: axis("ACC (%)", Scale::Within(0.0, 100.0)),
                marks: vec![Mark::Bars { series: 0, heights: heights.clone() }, Mark::Bars { series: 1, heights }],
                remarks: vec![],
            },
        ],
        columns: 2,
        panel_size: (300, 200),
        notes: vec!["A note.".into()],
    }
}

#[test]
fn a_chart_is_always_drawn_with_the_same_bytes() {
    let (first, second) = (everything().draw().unwrap(), everything().draw().unwrap());
    assert_eq!(first, second);
    assert_eq!(first.png(1.0).unwrap(), second.png(1.0).unwrap());
    // Other machines draw the same.
    assert_eq!(blake3::hash(first.svg.as_bytes()).to_hex()[..16], *"3725dceb17ea012d");
    let pixels = image::load_from_memory(&first.png(1.0).unwrap()).unwrap().to_rgba8().into_raw();
    assert_eq!(blake3::hash(&pixels).to_hex()[..16], *"e3a1eb67164be24e");
}

#[test]
fn letters_are_written_as_letters_and_markup_is_escaped() {
    let svg = everything().draw().unwrap().svg;
    for text in ["Everything", "first", "ASR (%)", "r = 0.5", "b &lt; c &amp; d", "A note."] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(svg.contains("DejaVu Sans, Verdana, sans-serif"));
}

#[test]
fn the_picture_has_the_size_of_the_panels_and_shows_data() {
    let drawing = everything().draw().unwrap();
    let png = image::load_from_memory(&drawing.png(1.0).unwrap()).unwrap().to_rgb8();
    // Two panels of 300 beside each other, a gap of 14 and margins of 12.
    assert_eq!(png.width(), 638);
    let blue = png.pixels().filter(|pixel| pixel.0 == [0, 114, 178]).count();
    assert!(blue > 2000, "{blue} dots of the first series' colour");
    assert_eq!(image::load_from_memory(&drawing.png(2.0).unwrap()).unwrap().width(), 1276);
    assert!(drawing.png(0.0).is_err());
}

#[test]
fn a_mark_of_no_series_is_refused() {
    let mut chart = everything();
    chart.legend.pop();
    assert!(chart.draw().unwrap_err().to_string().contains("no series 1"));
    let nowhere = Chart { columns: 0, ..everything() };
    assert!(nowhere.draw().is_err());
}

#[test]
fn remarks_stand_where_there_are_no_data() {
    // Data on the left: the remark moves to the right.
    let panel = |points: &[(f64, f64)]| Chart {
        legend: series(&["s"], Shape::Dots),
        panels: vec![Panel {
            title: String::new(),
            x: axis("x", Scale::Within(0.0, 1.0)),
            y: axis("y", Scale::Within(0.0, 1.0)),
            marks: vec![Mark::Dots { series: 0, points: points.to_vec() }],
            remarks: vec!["REMARK".into()],
        }],
        columns: 1,
        ..everything()
    };
    let x = |chart: Chart| {
        let svg = chart.draw().unwrap().svg;
        let before = &svg[..svg.find("REMARK").unwrap()];
        let start = before.rfind("<text x=\"").unwrap() + 9;
        before[start..].split('"').next().unwrap().parse::<i32>().unwrap()
    };
    let above = |x: f64| (0..50).map(move |index| (x, f64::from(index) / 50.0)).collect::<Vec<_>>();
    assert!(x(panel(&above(0.1))) > x(panel(&above(0.9))));
}
