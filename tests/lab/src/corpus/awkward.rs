//! Messages that parsers get wrong: cut headers, wrong boundaries, deep nesting, bare line feeds. No NUL, which a
//! server may refuse to deliver.

/// How many there are.
pub(super) const COUNT: usize = 27;

/// One of them; past the last it is the last again.
pub(super) fn message(number: usize, canary: &str) -> Vec<u8> {
    let head = format!(
        "From: awkward@example.com\r\nSubject: awkward {number}\r\nX-Canary: {canary}\r\nMIME-Version: 1.0\r\n"
    );
    let text = format!("Content-Type: text/plain\r\n\r\nhello {canary}\r\nworld\r\n");
    let inner = format!(
        "From: i@example.com\r\nSubject: inner {canary}\r\nContent-Type: text/plain\r\n\r\ninner body\r\n"
    );
    let mixed = |boundary: &str, parts: &[&str]| mixed(boundary, parts);
    let t = text.as_str();
    let latin = match number {
        0 => format!("{head}\r\nplain\r\n"),
        1 => format!("{head}\r\nline feeds only {canary}\r\n").replace("\r\n", "\n"),
        2 => head,
        3 => format!("{head}\r\n"),
        4 => format!("\r\nbody without header {canary}\r\n"),
        5 => head + &mixed("x", &[t, t]).replacen("--x", "preamble\r\n--x", 1) + "epilogue\r\n",
        6 => head + mixed("x", &[t, t]).trim_end_matches("--x--\r\n"),
        7 => head + &mixed("x", &[t, &mixed("xy", &[t, t]), t]),
        8 => head + &mixed("xy", &[t, &mixed("x", &[t, t]), t]),
        9 => head + &mixed("x", &[t, &mixed("x", &[t, t]), t]),
        10 => head + &mixed("x", &[t, t]).replace("--x\r\n", "--x  \r\n").replace("--x--", "--x-- \t"),
        11 => head + &mixed("x", &[t]).replace("; boundary=\"x\"", ""),
        12 => head + &mixed("x", &[]),
        13 => head + "Content-Type: multipart/mixed; boundary=x\r\n\r\nno delimiters here\r\n",
        14 => head + "Content-Type: message/rfc822\r\n\r\n" + &inner,
        15 => head + &mixed("x", &[t, &format!("Content-Type: message/rfc822\r\n\r\n{inner}")]),
        16 => {
            head + "Content-Type: multipart/digest; boundary=x\r\n\r\n--x\r\n\r\n" + &inner + "\r\n--x--\r\n"
        }
        17 => head + &mixed("a b", &[t]),
        18 => head + "Content-Type: text/plain\r\n" + &mixed("x", &[t]),
        19 => head + &mixed("xy", &[t]).replace("boundary=\"xy\"", "\r\n\tboundary*0=x;\r\n boundary*1=y"),
        20 => head + &mixed("x", &[t]).replace("boundary=\"x\"", "(comment) boundary=(c)x"),
        21 => head + "Subject : spaced\r\nX-A: 1\r\nx-a: 2\r\n folded\r\nX-AB: 3\r\n\r\nb\r\n",
        22 => head + &mixed("x", &["\r\nno part headers\r\n", "hdr: only", "\r\n", t]),
        23 => mixed_line_ends(&(head + &mixed("x", &[t, t]))),
        24 => head + &mixed(&"q".repeat(69), &[t]),
        25 => head + &(0..60).fold(text.clone(), |part, depth| mixed(&format!("b{depth}"), &[&part])),
        _ => {
            head + "Subject: folded {20}\r\n a1 OK \"open\r\n\r\n8-bit \u{e9} and a bare\rcarriage return\r\n"
        }
    };
    // All characters stand below U+0100: one octet each.
    latin.chars().map(|character| u8::try_from(character).unwrap_or(b'?')).collect()
}

fn mixed(boundary: &str, parts: &[&str]) -> String {
    let parts: String = parts.iter().map(|part| format!("--{boundary}\r\n{part}\r\n")).collect();
    format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\r\n\r\n{parts}--{boundary}--\r\n")
}

fn mixed_line_ends(text: &str) -> String {
    text.split_inclusive("\r\n")
        .enumerate()
        .map(|(number, line)| if number % 3 == 1 { line.replace("\r\n", "\n") } else { line.to_owned() })
        .collect()
}
