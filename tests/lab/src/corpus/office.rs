//! Office-like messages: text, alternatives, pictures in HTML, attachments, forwarded mail.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Canary;
use crate::rng::Rng;

/// The shape of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// One text part.
    Plain,
    /// Text and HTML.
    Alternative,
    /// HTML with a picture of its own.
    Related,
    /// Text and a file.
    Attachment,
    /// Text and a forwarded message.
    Forward,
}

/// A message whose length is drawn from the office distribution.
pub(super) fn message(
    rng: &mut Rng,
    canary: &Canary,
    number: usize,
    attachment_octets_max: usize,
) -> Vec<u8> {
    let wire_octets_max = attachment_octets_max.saturating_mul(4) / 3 + 20_000;
    let octets = draw_length(rng).min(wire_octets_max);
    let kind = match (octets, rng.below(10)) {
        (0..4_000, 0..5) => MessageKind::Plain,
        (0..14_000, _) => MessageKind::Alternative,
        (_, 0..2) => MessageKind::Related,
        (14_000..60_000, 2..4) => MessageKind::Forward,
        (14_000..40_000, 4..7) => MessageKind::Alternative,
        _ => MessageKind::Attachment,
    };
    let mut writer = Writer { rng, canary, out: Vec::with_capacity(octets + 4_096) };
    writer.headers(number, octets);
    writer.body(kind, number, octets);
    writer.out
}

/// Log-normal, median 26 kB, nine of ten below 260 kB.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates at the ends")]
fn draw_length(rng: &mut Rng) -> usize {
    /// ln(10) over the normal distribution's 90 % point.
    const SIGMA: f64 = 1.797;
    (26_000.0 * (SIGMA * rng.normal()).exp()) as usize
}

struct Writer<'a> {
    rng: &'a mut Rng,
    canary: &'a Canary,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn line(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn word(&mut self) -> &'static str {
        self.rng.pick(WORDS).copied().unwrap_or("mail")
    }

    fn words(&mut self, count: usize) -> String {
        (0..count).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }

    fn headers(&mut self, number: usize, octets: usize) {
        let canary = self.canary.text.clone();
        let id = format!("{number}.{}", canary.get(..8).unwrap_or_default());
        let person = *self.rng.pick(PEOPLE).unwrap_or(&"Office");
        for hop in 0..1 + self.rng.below(4) {
            self.line(&format!(
                "Received: from relay{hop}.example.com (relay{hop}.example.com [192.0.2.{hop}])"
            ));
            self.line(&format!("\tby mail.lab.test with ESMTPS id {id}-{hop}"));
            self.line("\t(version=TLS1_3 cipher=TLS_AES_256_GCM_SHA384);");
            self.line("\tTue, 14 Nov 2023 22:13:20 +0000");
        }
        self.line(&format!("X-Canary: {canary}"));
        self.line(&format!("Message-ID: <{id}@example.com>"));
        self.line(&date(number));
        let local = person.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), ".");
        self.line(&format!("From: \"{person}\" <{local}@example.com>"));
        self.line("To: Office <office@lab.test>, \"Bob, B.\" <bob@lab.test>");
        if number.is_multiple_of(3) {
            self.line(&format!("In-Reply-To: <{}.{canary}@example.com>", number / 2));
            self.line(&format!(
                "References: <{}.{canary}@example.com>\r\n <{}.{canary}@example.com>",
                number / 3,
                number / 2
            ));
        }
        if number % 29 == 7 {
            // A long list of recipients: one header of several kilobytes.
            let many: Vec<String> = (0..120).map(|n| format!("Person {n} <person{n}@example.com>")).collect();
            self.line(&format!("Cc: {}", many.join(",\r\n ")));
        }
        let (subject, word) = (self.words(5), self.word());
        match number % 13 {
            // Ends in what looks like a literal where a server that does not unfold would put a line's end.
            3 => self.line(&format!("Subject: offer for {subject} {{20}}\r\n and the rest of it")),
            5 => self.line(&format!("Subject: {subject} \"quoted\" \\ and {{7}}")),
            8 => self.line(&format!(
                "Subject: =?UTF-8?B?{}?=\r\n =?ISO-8859-1?Q?und_mehr_=FCber_{}?=",
                STANDARD.encode(format!("Grüße: {}", subject.get(..12).unwrap_or("Post"))),
                word
            )),
            _ => self
                .line(&format!("Subject: {}{subject}", if number.is_multiple_of(4) { "Re: " } else { "" })),
        }
        self.line("MIME-Version: 1.0");
        self.line(&format!("X-Mailer: Office Mail 16.{}", octets % 10));
    }

    fn body(&mut self, kind: MessageKind, number: usize, octets: usize) {
        let left = octets.saturating_sub(self.out.len());
        let mark = |level: &str| format!("----=_{level}_{number:06}");
        let (outer, inner) = (mark("Outer"), mark("Inner"));
        match kind {
            MessageKind::Plain => self.text(number, left),
            MessageKind::Alternative => self.alternative(&outer, number, left),
            MessageKind::Related => {
                self.line(&format!("Content-Type: multipart/related; boundary=\"{outer}\";\r\n\ttype=\"multipart/alternative\"\r\n"));
                self.line(&format!("--{outer}"));
                self.alternative(&inner, number, 6_000);
                self.line(&format!("\r\n--{outer}"));
                self.line("Content-Type: image/png; name=\"logo.png\"\r\nContent-ID: <logo@example.com>");
                self.base64("Content-Disposition: inline; filename=\"logo.png\"", left.saturating_sub(7_000));
                self.line(&format!("--{outer}--"));
            }
            MessageKind::Attachment => {
                self.line(&format!("Content-Type: multipart/mixed; boundary=\"{outer}\"\r\n\r\nThis is a message in MIME.\r\n"));
                self.line(&format!("--{outer}"));
                self.alternative(&inner, number, 3_000);
                self.line(&format!("\r\n--{outer}"));
                if number.is_multiple_of(3) {
                    // RFC 2231: a name in pieces and in another alphabet.
                    self.line("Content-Type: application/pdf;\r\n name*0*=UTF-8''Angebot%20f%C3%BCr%20;\r\n name*1*=M%C3%BCller;\r\n name*2=\".pdf\"");
                    self.base64("Content-Disposition: attachment;\r\n filename*=UTF-8''Angebot%20f%C3%BCr%20M%C3%BCller.pdf", left.saturating_sub(4_000));
                } else {
                    self.line(&format!(
                        "Content-Type: application/octet-stream; name=\"report {number}.xlsx\""
                    ));
                    self.base64(
                        &format!("Content-Disposition: attachment; filename=\"report {number}.xlsx\""),
                        left.saturating_sub(4_000),
                    );
                }
                self.line(&format!("--{outer}--"));
            }
            MessageKind::Forward => {
                self.line(&format!("Content-Type: multipart/mixed; boundary=\"{outer}\"\r\n"));
                self.line(&format!("--{outer}"));
                self.text(number, 1_500);
                self.line(&format!(
                    "\r\n--{outer}\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment\r\n"
                ));
                let canary = self.canary.text.clone();
                self.line(&format!(
                    "From: inner@example.com\r\nSubject: forwarded\r\nX-Canary: {canary}\r\nMIME-Version: 1.0"
                ));
                self.line(&format!("Content-Type: multipart/mixed; boundary=\"{inner}\"\r\n\r\n--{inner}"));
                self.text(number + 1, 1_500);
                self.line(&format!("\r\n--{inner}\r\nContent-Type: image/jpeg"));
                self.base64(
                    "Content-Disposition: attachment; filename=\"scan.jpg\"",
                    left.saturating_sub(5_000),
                );
                self.line(&format!("--{inner}--\r\n\r\n--{outer}--"));
            }
        }
    }

    fn alternative(&mut self, boundary: &str, number: usize, octets: usize) {
        self.line(&format!("Content-Type: multipart/alternative; boundary=\"{boundary}\"\r\n"));
        self.line(&format!("--{boundary}"));
        self.text(number, octets / 3);
        self.line(&format!("\r\n--{boundary}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n"));
        self.line("<html><body style=3D\"font-family: sans-serif\">");
        let end = self.out.len() + octets * 2 / 3;
        self.until(end, |writer| {
            let words = writer.words(6);
            writer.line(&format!("<p>{words} =E2=82=AC &amp; =C3=BCber=\r\n das</p>"));
        });
        self.line(&format!("</body></html>\r\n\r\n--{boundary}--"));
    }

    /// A text part with its headers: quoted-printable, 8-bit or plain by turns.
    fn text(&mut self, number: usize, octets: usize) {
        let end = self.out.len() + octets;
        match number % 3 {
            0 => {
                self.line("Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n");
                self.until(end, |writer| {
                    let words = writer.words(8);
                    writer.line(&format!("{words} gr=C3=BC=C3=9Fe =3D a soft=\r\n line"));
                });
            }
            1 => {
                self.line(
                    "Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n",
                );
                self.until(end, |writer| {
                    let words = writer.words(8);
                    writer.out.extend_from_slice(words.as_bytes());
                    writer.out.extend_from_slice(b" gr\xfc\xdfe\r\n");
                });
            }
            _ => {
                self.line("Content-Type: text/plain; charset=us-ascii; format=flowed\r\n");
                self.until(end, |writer| {
                    let words = writer.words(9);
                    writer.line(&words);
                });
            }
        }
    }

    /// Writes pieces up to a length, the canary first and again after each kibibyte.
    fn until(&mut self, end: usize, mut piece: impl FnMut(&mut Self)) {
        let mut canary_at = self.out.len();
        loop {
            if self.out.len() >= canary_at {
                let canary = self.canary.text.clone();
                self.line(&canary);
                canary_at = self.out.len() + 1_000;
            }
            if self.out.len() >= end {
                return;
            }
            piece(self);
        }
    }

    /// A base64 part of so many octets on the wire: lines of 76, the canary at the start of every 13th.
    fn base64(&mut self, disposition: &str, octets: usize) {
        self.line(disposition);
        self.line("Content-Transfer-Encoding: base64\r\n");
        for number in 0..octets / 78 {
            let mut raw = [0u8; 57];
            for chunk in raw.chunks_mut(8) {
                chunk.copy_from_slice(self.rng.bits().to_be_bytes().get(..chunk.len()).unwrap_or_default());
            }
            if number.is_multiple_of(13)
                && let Some(start) = raw.get_mut(..self.canary.text.len())
            {
                start.copy_from_slice(self.canary.text.as_bytes());
            }
            let line = STANDARD.encode(raw);
            self.line(&line);
        }
        self.line(&self.canary.base64.clone());
    }
}

fn date(number: usize) -> String {
    let (day, hour, minute) = (1 + number / 60 % 28, number / 4 % 24, number * 15 % 60);
    format!("Date: {day} Nov 2023 {hour:02}:{minute:02}:00 +0100")
}

const PEOPLE: &[&str] =
    &["Anna Weber", "B. O'Neill", "Chen Li", "Dr. Eva Novak", "Support (Office)", "Zoe, Sales"];

const WORDS: &[&str] = &[
    "meeting", "report", "quarter", "invoice", "please", "find", "attached", "the", "figures", "for",
    "budget", "review", "project", "deadline", "Friday", "customer", "contract", "draft", "version", "with",
    "comments", "and", "changes", "from", "team", "office", "travel", "schedule", "update", "agenda",
    "minutes", "order", "delivery",
];
