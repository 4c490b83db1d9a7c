//! Classic BPF programs, against an interpreter that reads an instruction's bits as `bpf_filter.c` does.

use discovery_core::rule::{BpfInsn, Program};

/// How many instructions, eight octets for each, and a packet. The first octet of an instruction says how to read the
/// rest: 0 as it stands, else bent so that most are valid.
pub fn run(data: &[u8]) {
    taken(data);
}

/// As [`run`]; whether it was a program that runs.
fn taken(data: &[u8]) -> bool {
    let Some((&count, rest)) = data.split_first() else { return false };
    let count = usize::from(count).min(rest.len() / 8);
    let (program, packet) = rest.split_at(count * 8);
    let instructions: Vec<BpfInsn> = program
        .chunks(8)
        .enumerate()
        .map(|(at, octets)| {
            let [bend, code, jt, jf, k @ ..] = <[u8; 8]>::try_from(octets).unwrap();
            let k = u32::from_be_bytes(k);
            if bend == 0 {
                return BpfInsn { code: code.into(), jt, jf, k };
            }
            let code = CODES[usize::from(code) % CODES.len()];
            let left = u8::try_from(count - at).unwrap_or(1).max(2) - 1;
            let k = match (code, bend % 2) {
                (5, _) => k % u32::from(left),
                (2 | 3 | 0x60 | 0x61, _) => k % 16,
                (_, 0) => k % 64,
                (_, _) => k,
            };
            BpfInsn { code: code.into(), jt: jt % left, jf: jf % left, k }
        })
        .collect();
    let program = Program::new(&instructions);
    assert_eq!(program.is_ok(), valid(&instructions), "{program:?}: {instructions:?}");
    let Ok(program) = program else { return false };
    assert_eq!(program.run(packet), interpret(&instructions, packet), "{instructions:?}");
    true
}

fn valid(program: &[BpfInsn]) -> bool {
    let inside = |at: usize, skip: u32| at as u64 + 1 + u64::from(skip) < program.len() as u64;
    let each = program.iter().enumerate().all(|(at, i)| {
        let known = u8::try_from(i.code).is_ok_and(|code| CODES.contains(&code));
        let jumps = match i.code {
            5 => inside(at, i.k),
            code if code & 7 == 5 => inside(at, i.jt.into()) && inside(at, i.jf.into()),
            _ => true,
        };
        let memory = ![2, 3, 0x60, 0x61].contains(&i.code) || i.k < 16;
        let divides = [0x34, 0x94].contains(&i.code) && i.k == 0;
        known && jumps && memory && !divides
    });
    each && program.last().is_some_and(|i| i.code & 7 == 6)
}

fn interpret(program: &[BpfInsn], packet: &[u8]) -> Option<u32> {
    let (mut a, mut x, mut memory, mut at) = (0_u64, 0_u64, [0_u64; 16], 0);
    let read = |offset: u64, octets: u64| {
        let inside = offset + octets <= packet.len() as u64;
        inside.then(|| (offset..offset + octets).fold(0, |sum, o| sum << 8 | u64::from(packet[index(o)])))
    };
    loop {
        let i = program[at];
        let k = u64::from(i.k);
        at += 1;
        let (class, mode, operation) = (i.code & 7, i.code & 0xE0, i.code & 0xF0);
        let operand = if i.code & 8 == 0 { k } else { x };
        let size = match i.code & 0x18 {
            0 => 4,
            8 => 2,
            _ => 1,
        };
        match (class, mode) {
            (0 | 1, 0) => *if class == 0 { &mut a } else { &mut x } = k,
            (0, 0x20) => a = read(k, size)?,
            (0, 0x40) => a = read(x + k, size)?,
            (0 | 1, 0x60) => *if class == 0 { &mut a } else { &mut x } = memory[index(k)],
            (0 | 1, 0x80) => *if class == 0 { &mut a } else { &mut x } = packet.len() as u64,
            (1, _) => x = 4 * (read(k, 1)? & 15),
            (2, _) => memory[index(k)] = a,
            (3, _) => memory[index(k)] = x,
            (4, _) => {
                a = match operation {
                    0x00 => a + operand,
                    0x10 => a.wrapping_sub(operand),
                    0x20 => a * operand,
                    0x30 if operand == 0 => return None,
                    0x30 => a / operand,
                    0x40 => a | operand,
                    0x50 => a & operand,
                    0x60 if operand < 32 => a << operand,
                    0x70 if operand < 32 => a >> operand,
                    0x60 | 0x70 => 0,
                    0x80 => 0_u64.wrapping_sub(a),
                    0x90 if operand == 0 => return None,
                    0x90 => a % operand,
                    _ => a ^ operand,
                } & 0xFFFF_FFFF;
            }
            (5, _) => {
                let holds = match operation {
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    _ => a & operand != 0,
                };
                let skip = if holds { i.jt } else { i.jf };
                at += if operation == 0 { i.k as usize } else { usize::from(skip) };
            }
            (6, _) => return u32::try_from(if i.code == 6 { k } else { a }).ok(),
            _ if i.code == 7 => x = a,
            _ => a = x,
        }
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// All of classic BPF.
#[rustfmt::skip]
const CODES: &[u8] = &[
    0x00, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x80, 0x01, 0x61, 0x81, 0xb1, 0x02, 0x03,
    0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84,
    0x94, 0x9c, 0xa4, 0xac, 0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d, 0x06, 0x16, 0x07, 0x87,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mutator, corpus};

    #[test]
    fn mutations_run_often() {
        let pool = corpus("cbpf").unwrap().into_iter().map(|(_, octets)| octets).collect();
        let mut mutator = Mutator::new(7, pool);
        let taken = (0..5000).filter(|_| taken(&mutator.input())).count();
        assert!(taken > 500, "{taken} of 5000");
    }
}
