//! A `table` environment with booktabs rules, to be taken into a paper by `\input`.

use super::{printed, row_head};
use crate::table::{Column, Entry, Table, Value};

pub(super) fn render(table: &Table) -> String {
    let columns: Vec<&Column> = table.columns.iter().filter(|column| !column.metrics.is_empty()).collect();
    let slots = table.slots().count();
    let groups = columns.iter().map(|column| "r".repeat(column.metrics.len())).collect::<Vec<_>>().join(" ");
    let caption = format!(
        "{}. {}. {}",
        table.title.trim_end_matches('.'),
        table.summary(),
        table.notes("the best in bold").join(" ")
    );
    let mut text = format!(
        "% needs \\usepackage{{booktabs}}\n\
         \\begin{{table}}[t]\n  \\centering\n  \\footnotesize\n  \\setlength{{\\tabcolsep}}{{4pt}}\n  \
         \\caption{{{}}}\n  \\label{{tab:{}}}\n  \\begin{{tabular}}{{l {groups}}}\n    \\toprule\n",
        escaped(&caption),
        label(&table.experiment),
    );

    let heads = columns
        .iter()
        .map(|column| format!("\\multicolumn{{{}}}{{c}}{{{}}}", column.metrics.len(), escaped(&column.title)));
    text += &line("", heads);
    let mut from = 2;
    let mut rules = Vec::new();
    for column in &columns {
        let to = from + column.metrics.len() - 1;
        rules.push(format!("\\cmidrule(lr){{{from}-{to}}}"));
        from = to + 1;
    }
    text += &format!("    {}\n", rules.join(" "));
    text += &line(&escaped(&row_head(&table.row_axis)), table.slots().map(|(_, _, _, metric)| escaped(&metric.title)));

    for panel in &table.panels {
        text += "    \\midrule\n";
        if !panel.title.is_empty() {
            let title = escaped(&panel.title);
            text += &format!("    \\multicolumn{{{}}}{{l}}{{\\emph{{{title}}}}} \\\\\n", slots + 1);
        }
        for row in &panel.lines {
            text += &line(&escaped(&row.title), table.slots().map(|(c, m, _, _)| value(&row.entries[c][m])));
        }
        if !panel.averages.is_empty() {
            text += "    \\cmidrule(l){1-1}\n";
        }
        for row in &panel.averages {
            text += &line(&escaped(&row.title), table.slots().map(|(c, m, _, _)| value(&row.entries[c][m])));
        }
    }
    text + "    \\bottomrule\n  \\end{tabular}\n\\end{table}\n"
}

fn line(first: &str, cells: impl Iterator<Item = String>) -> String {
    format!("    {first} & {} \\\\\n", cells.collect::<Vec<_>>().join(" & "))
}

fn value(entry: &Entry) -> String {
    let text = match entry.value {
        Value::Measured { .. } => printed(&entry.value, "\\,$\\pm$\\,"),
        Value::Missing => "\\emph{missing}".into(),
        Value::Failed => "\\emph{failed}".into(),
        Value::Undefined => "--".into(),
    };
    if entry.best { format!("\\textbf{{{text}}}") } else { text }
}

/// Text without a character that LaTeX takes for a command, in the encodings every engine knows.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped += "\\textbackslash{}",
            '~' => escaped += "\\textasciitilde{}",
            '^' => escaped += "\\textasciicircum{}",
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(character);
            }
            '±' => escaped += "$\\pm$",
            '·' => escaped += "$\\cdot$",
            '–' => escaped += "--",
            '<' | '>' => escaped += &format!("${character}$"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Letters, digits and dashes alone, which every `\ref` accepts.
fn label(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_of_a_title_becomes_a_command() {
        assert_eq!(
            escaped("50% of A_1 & B #2 {x} \\input ~ ^"),
            "50\\% of A\\_1 \\& B \\#2 \\{x\\} \\textbackslash{}input \\textasciitilde{} \\textasciicircum{}"
        );
        assert_eq!(label("my table_1.v2"), "my-table-1-v2");
    }
}
