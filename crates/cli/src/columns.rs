//! Plain text in aligned columns, and paragraphs folded to a width: how lists are shown to people.

/// Rows of cells; the last column may be folded to the width of the terminal.
#[derive(Debug, Default)]
pub struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// Columns under these headings.
    pub fn headed(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Appends a row.
    pub fn row<Cell: Into<String>>(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The rows, two spaces between columns, the last column folded to `width`.
    pub fn render(&self, width: usize) -> String {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..count)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| length(cell)).max().unwrap_or(0)
            })
            .collect();
        let indent: usize = widths.iter().take(count.saturating_sub(1)).map(|width| width + 2).sum();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column + 1 == count {
                    line.push_str(&fold(cell, width.saturating_sub(indent).max(30), indent));
                } else {
                    line.push_str(cell);
                    line.push_str(&" ".repeat(widths[column] + 2 - length(cell)));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Breaks a paragraph between words so that no line is longer than `width` characters; lines after the first begin
/// with `indent` spaces. A word longer than the width stays whole.
pub fn fold(paragraph: &str, width: usize, indent: usize) -> String {
    let mut text = String::new();
    let mut used = 0;
    for word in paragraph.split_whitespace() {
        if used > 0 && used + 1 + length(word) > width {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += length(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_spaces() {
        let mut columns = Columns::headed(&["name", "title"]);
        columns.row(["ft", "Fine-tuning"]);
        columns.row(["longest", ""]);
        assert_eq!(columns.render(80), "name     title\nft       Fine-tuning\nlongest\n");
    }

    #[test]
    fn a_folded_paragraph_keeps_every_word_and_no_line_exceeds_the_width() {
        let paragraph = "a patch in the corner of the image makes the classifier see the target class";
        let folded = fold(paragraph, 20, 4);
        assert_eq!(folded.split_whitespace().collect::<Vec<_>>(), paragraph.split_whitespace().collect::<Vec<_>>());
        assert!(folded.lines().all(|line| line.trim_start().chars().count() <= 20));
        assert!(folded.lines().skip(1).all(|line| line.starts_with("    ")));
    }
}
