use super::*;

fn series(names: &[&str], shape: Shape) -> Vec<Series> {
    names.iter().map(|name| Series { name: (*name).to_owned(), shape }).collect()
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis { label: label.to_owned(), scale }
}

fn mean(value: f64, spread: Option<f64>) -> Mean {
    Mean { value, spread, complete: true }
}

/// All kinds of marks, one panel each.
fn everything() -> Chart {
    let curve = |series: usize, spread: Option<f64>| {
        let points = [0.01, 0.1, 0.5].map(|x| Point { x, y: mean(90.0 - 40.0 * x - 5.0 * series as f64, spread) });
        Mark::Line { series, points: points.to_vec() }
    };
    let dots = (0..200).map(|index| (f64::from(index), f64::from(index * index % 97))).chain([(f64::NAN, 1.0)]);
    let heights = vec![Some(mean(80.0, Some(3.0))), None, Some(mean(12.5, None))];
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
                marks: vec![
                    Mark::Guide { points: vec![(0.0, 0.0), (200.0, 97.0)] },
                    Mark::Dots { series: 0, points: dots.collect() },
                ],
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
    let pixels = image::load_from_memory(&first.png(1.0).unwrap()).unwrap().to_rgba8().into_raw();
    let digests = [first.svg.as_bytes(), &pixels].map(|bytes| blake3::hash(bytes).to_hex()[..16].to_owned());
    assert_eq!(digests, ["7307ed4e1f872207", "d7205b5f3453eaf6"]);
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

/// The corners of every polygon of a colour and an opacity, e.g. of the bands.
fn polygons(svg: &str, look: &str) -> Vec<Vec<(i32, i32)>> {
    let drawn = svg.split("<polygon").skip(1).map(|part| part.split("/>").next().unwrap());
    let corners = |part: &str| {
        let points = part.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let place = |pair: &str| pair.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()));
        points.split_whitespace().filter_map(place).collect()
    };
    drawn.filter(|part| part.contains(look)).map(corners).collect()
}

/// A curve through means of 90 with these spreads; `None`: one seed of two.
fn curve(spreads: &[Option<f64>]) -> Chart {
    let point = |(place, spread): (usize, &Option<f64>)| Point {
        x: place as f64,
        y: Mean { value: 90.0, spread: *spread, complete: spread.is_some() },
    };
    let points = spreads.iter().enumerate().map(point).collect();
    let (x, y) = (axis("x", Scale::Linear), axis("ACC (%)", Scale::Percent(Vec::new())));
    let panel =
        Panel { title: String::new(), x, y, marks: vec![Mark::Line { series: 0, points }], remarks: Vec::new() };
    Chart { legend: series(&["s"], Shape::Line), panels: vec![panel], columns: 1, ..everything() }
}

#[test]
fn a_band_ends_where_no_spread_is_known_instead_of_being_pinched_to_nothing() {
    let bands = |spreads: &[Option<f64>]| polygons(&curve(spreads).draw().unwrap().svg, "opacity=\"0.18\"");
    assert_eq!(bands(&[Some(2.0); 5]).iter().map(Vec::len).collect::<Vec<_>>(), [10]);
    let broken = bands(&[Some(2.0), Some(2.0), None, Some(2.0), Some(2.0)]);
    assert_eq!(broken.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
    for corners in broken {
        assert!(corners[0].1 != corners[3].1, "a band has a width everywhere: {corners:?}");
    }
}

#[test]
fn no_line_is_without_length() {
    let mut chart = curve(&[Some(0.0)]);
    for step in 1..40 {
        // The dotted look, at slopes that end its dots at all places of their pattern.
        let points = [0.0, f64::from(step) * 0.013, 1.0].map(|x| Point { x, y: mean(x * f64::from(step), None) });
        chart.panels[0].marks.push(Mark::Line { series: 2, points: points.to_vec() });
    }
    chart.legend = series(&["first", "second", "third"], Shape::Line);
    let svg = chart.draw().unwrap().svg;
    let mut lines = svg.split("<polyline").skip(1).map(|rest| rest.split("points=\"").nth(1).unwrap());
    assert!(lines.clone().count() > 1000);
    assert!(lines.all(|line| {
        let mut places = line.split('"').next().unwrap().split_whitespace();
        let first = places.next();
        places.any(|place| Some(place) != first)
    }));
}

#[test]
fn a_point_that_lacks_seeds_is_hollow() {
    let white = |spreads: &[Option<f64>]| polygons(&curve(spreads).draw().unwrap().svg, "#FFFFFF").len();
    assert_eq!((white(&[Some(2.0); 3]), white(&[Some(2.0), None, Some(2.0)])), (0, 1));
}

#[test]
fn titles_wider_than_the_panels_are_broken_into_lines() {
    let title = "A title that is much wider than a single panel of a figure can ever be";
    let mut chart = Chart { title: title.into(), subtitle: title.into(), ..everything() };
    chart.panels.truncate(1);
    let drawn = chart.draw().unwrap().svg;
    assert!(!drawn.contains(title));
    let texts = drawn.split("</text>").filter_map(|part| part.rsplit('>').next()).map(str::trim);
    let texts: Vec<&str> = texts.filter(|text| !text.is_empty() && title.contains(text)).collect();
    assert_eq!(texts.join(" "), format!("{title} {title}"));
    for (size, style) in [(15, canvas::bold(15)), (11, canvas::text(11, canvas::GREY_TEXT))] {
        let widest = texts.iter().map(|line| canvas::text_width(line, &style).unwrap()).min().unwrap();
        assert!(widest <= 300, "{size}: {widest}");
    }
}
