//! Classic BPF: the programs that libpcap makes out of expressions, run here over packets of strangers.
//!
//! A program is turned into checked operations once. Jumps go forwards, inside, and the last instruction returns, so
//! it ends after as many steps as it has instructions. At run time a load outside the packet, or a division by a zero
//! in a register, means 'no match', as in the kernel and in libpcap (McCanne and Jacobson, 1993; `bpf_filter.c`).
//! Shifts by 32 and more give 0, as in libpcap. The kernel's extensions (loads at negative offsets) lie outside every
//! packet. Packets begin with their IP header: compile for `DLT_RAW`.

mod op;

use op::{Op, Returned, Size};

/// One instruction as `tcpdump -ddd` and `pcap_compile` give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BpfInsn {
    /// Class, size, mode, operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// And when it does not.
    pub jf: u8,
    /// The number that comes with it.
    pub k: u32,
}

/// A program that ends, whatever packet it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    ops: Vec<Op>,
}

/// Why a program is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It has no instructions.
    #[error("no instructions")]
    Empty,
    /// More than any kernel takes.
    #[error("{0} instructions, and at most {INSTRUCTIONS_MAX} are allowed")]
    TooLong(usize),
    /// No instruction of classic BPF.
    #[error("instruction {at}: code {code:#06x} is none of classic BPF")]
    Code {
        /// Where, from 0.
        at: usize,
        /// Which.
        code: u16,
    },
    /// It leads out of the program.
    #[error("instruction {at} jumps outside the program")]
    Jump {
        /// Where, from 0.
        at: usize,
    },
    /// There are 16 words of scratch memory.
    #[error("instruction {at} uses word {k} of 16 in memory")]
    Memory {
        /// Where, from 0.
        at: usize,
        /// Which.
        k: u32,
    },
    /// It always divides by zero.
    #[error("instruction {at} divides by zero")]
    DivideByZero {
        /// Where, from 0.
        at: usize,
    },
    /// The last instruction does not return.
    #[error("the last instruction does not return")]
    NoReturn,
}

impl Program {
    /// Checks a program.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub fn new(instructions: &[BpfInsn]) -> Result<Self, ProgramError> {
        if instructions.len() > INSTRUCTIONS_MAX {
            return Err(ProgramError::TooLong(instructions.len()));
        }
        let ops = instructions
            .iter()
            .enumerate()
            .map(|(at, instruction)| Op::new(at, *instruction, instructions.len()))
            .collect::<Result<Vec<_>, _>>()?;
        match ops.last() {
            None => Err(ProgramError::Empty),
            Some(Op::Return(_)) => Ok(Self { ops }),
            Some(_) => Err(ProgramError::NoReturn),
        }
    }

    /// Whether the expression holds for this packet.
    #[must_use]
    pub fn matches(&self, packet: &[u8]) -> bool {
        self.run(packet).is_some_and(|octets| octets != 0)
    }

    /// What the program returns (for a filter, how many octets to keep); none when it reads outside the packet or
    /// divides by zero.
    #[must_use]
    pub fn run(&self, packet: &[u8]) -> Option<u32> {
        let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; MEMORY_WORDS]);
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let mut ops = self.ops.iter();
        while let Some(op) = ops.next() {
            match *op {
                Op::Load(size, offset) => a = load(packet, size, offset)?,
                Op::LoadIndexed(size, offset) => a = load(packet, size, x.checked_add(offset)?)?,
                Op::LoadImmediate(k) => a = k,
                Op::LoadLength => a = length,
                Op::LoadMemory(word) => a = *memory.get(word)?,
                Op::IndexImmediate(k) => x = k,
                Op::IndexLength => x = length,
                Op::IndexMemory(word) => x = *memory.get(word)?,
                Op::IndexHeaderLength(offset) => x = (load(packet, Size::Octet, offset)? & 15) << 2,
                Op::Store(word) => *memory.get_mut(word)? = a,
                Op::StoreIndex(word) => *memory.get_mut(word)? = x,
                Op::Arithmetic(operation, operand) => a = operation.of(a, operand.value(x))?,
                Op::Negate => a = a.wrapping_neg(),
                Op::Jump(skip) => skip_ops(&mut ops, skip),
                Op::Branch { test, operand, yes, no } => {
                    skip_ops(&mut ops, if test.holds(a, operand.value(x)) { yes } else { no });
                }
                Op::Return(Returned::Constant(k)) => return Some(k),
                Op::Return(Returned::Accumulator) => return Some(a),
                Op::ToIndex => x = a,
                Op::FromIndex => a = x,
            }
        }
        // The last instruction returns.
        None
    }
}

/// Goes `skip` instructions on.
fn skip_ops(ops: &mut std::slice::Iter<'_, Op>, skip: usize) {
    *ops = ops.as_slice().get(skip..).unwrap_or_default().iter();
}

fn load(packet: &[u8], size: Size, offset: u32) -> Option<u32> {
    let octets = packet.get(usize::try_from(offset).ok()?..)?;
    match size {
        Size::Word => octets.first_chunk().map(|octets| u32::from_be_bytes(*octets)),
        Size::Half => octets.first_chunk().map(|octets| u16::from_be_bytes(*octets).into()),
        Size::Octet => octets.first().map(|octet| u32::from(*octet)),
    }
}

/// What the kernel takes (`BPF_MAXINSNS`); it bounds how long a packet can keep us.
pub const INSTRUCTIONS_MAX: usize = 4096;
const MEMORY_WORDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Code, jt, jf, k.
    type Row = (u16, u8, u8, u32);

    fn program(rows: &[Row]) -> Result<Program, ProgramError> {
        let instructions: Vec<_> =
            rows.iter().map(|&(code, jt, jf, k)| BpfInsn { code, jt, jf, k }).collect();
        Program::new(&instructions)
    }

    const RETURN_A: Row = (0x16, 0, 0, 0);

    #[test]
    fn every_instruction() {
        let packet = [0x45, 1, 2, 3, 4, 5, 6, 7];
        let (a, x) = ((0x00, 0, 0, 100), (0x01, 0, 0, 7));
        // Instructions before 'return A', and what is returned.
        let rows: &[(&[Row], Option<u32>)] = &[
            (&[(0x20, 0, 0, 0)], Some(0x4501_0203)),
            (&[(0x20, 0, 0, 4)], Some(0x0405_0607)),
            (&[(0x20, 0, 0, 5)], None),
            (&[(0x28, 0, 0, 6)], Some(0x0607)),
            (&[(0x28, 0, 0, 7)], None),
            (&[(0x30, 0, 0, 7)], Some(7)),
            (&[(0x30, 0, 0, 8)], None),
            (&[(0x30, 0, 0, u32::MAX)], None),
            (&[(0x20, 0, 0, 0xFFFF_F000)], None),
            (&[x, (0x40, 0, 0, 0)], None),
            (&[(0x01, 0, 0, 3), (0x40, 0, 0, 1)], Some(0x0405_0607)),
            (&[(0x01, 0, 0, 3), (0x48, 0, 0, 1)], Some(0x0405)),
            (&[x, (0x50, 0, 0, 0)], Some(7)),
            (&[x, (0x50, 0, 0, u32::MAX)], None),
            (&[a], Some(100)),
            (&[(0x80, 0, 0, 0)], Some(8)),
            (&[a, (0x02, 0, 0, 15), (0x00, 0, 0, 1), (0x60, 0, 0, 15)], Some(100)),
            (&[(0x60, 0, 0, 3)], Some(0)),
            (&[x, (0x87, 0, 0, 0)], Some(7)),
            (&[(0x81, 0, 0, 0), (0x87, 0, 0, 0)], Some(8)),
            (&[x, (0x03, 0, 0, 2), (0x01, 0, 0, 1), (0x61, 0, 0, 2), (0x87, 0, 0, 0)], Some(7)),
            (&[(0xb1, 0, 0, 0), (0x87, 0, 0, 0)], Some(20)),
            (&[(0xb1, 0, 0, 8)], None),
            (&[a, (0x04, 0, 0, u32::MAX)], Some(99)),
            (&[a, x, (0x0c, 0, 0, 0)], Some(107)),
            (&[a, (0x14, 0, 0, 101)], Some(u32::MAX)),
            (&[a, x, (0x1c, 0, 0, 0)], Some(93)),
            (&[a, (0x24, 0, 0, 1 << 31)], Some(0)),
            (&[a, x, (0x2c, 0, 0, 0)], Some(700)),
            (&[a, (0x34, 0, 0, 7)], Some(14)),
            (&[a, x, (0x3c, 0, 0, 0)], Some(14)),
            (&[a, (0x3c, 0, 0, 0)], None),
            (&[a, (0x94, 0, 0, 7)], Some(2)),
            (&[a, x, (0x9c, 0, 0, 0)], Some(2)),
            (&[a, (0x9c, 0, 0, 0)], None),
            (&[a, (0x44, 0, 0, 3)], Some(103)),
            (&[a, x, (0x4c, 0, 0, 0)], Some(103)),
            (&[a, (0x54, 0, 0, 6)], Some(4)),
            (&[a, x, (0x5c, 0, 0, 0)], Some(4)),
            (&[a, (0xa4, 0, 0, 1)], Some(101)),
            (&[a, x, (0xac, 0, 0, 0)], Some(99)),
            (&[a, (0x64, 0, 0, 1)], Some(200)),
            (&[a, (0x64, 0, 0, 32)], Some(0)),
            (&[a, x, (0x6c, 0, 0, 0)], Some(12_800)),
            (&[a, (0x74, 0, 0, 2)], Some(25)),
            (&[a, x, (0x7c, 0, 0, 0)], Some(0)),
            (&[a, (0x01, 0, 0, 99), (0x7c, 0, 0, 0)], Some(0)),
            (&[a, (0x84, 0, 0, 0)], Some(u32::MAX - 99)),
            (&[a, (0x07, 0, 0, 0), (0x00, 0, 0, 0), (0x87, 0, 0, 0)], Some(100)),
            (&[a, (0x05, 0, 0, 1), (0x00, 0, 0, 1)], Some(100)),
            (&[a, (0x06, 0, 0, 5)], Some(5)),
        ];
        for (instructions, returned) in rows {
            let program = program(&[instructions, &[RETURN_A][..]].concat()).unwrap();
            assert_eq!(program.run(&packet), *returned, "{instructions:x?}");
            assert_eq!(program.matches(&packet), returned.is_some_and(|octets| octets != 0));
        }
    }

    #[test]
    fn every_comparison() {
        // Code, A, operand, whether it holds.
        let rows = [
            (0x15, 5, 5, true),
            (0x15, 5, 6, false),
            (0x25, 5, 4, true),
            (0x25, 5, 5, false),
            (0x25, u32::MAX, 1, true),
            (0x35, 5, 5, true),
            (0x35, 4, 5, false),
            (0x45, 6, 2, true),
            (0x45, 6, 9, false),
            (0x45, 6, 0, false),
        ];
        for (code, a, operand, holds) in rows {
            for by_index in [false, true] {
                let code = if by_index { code + 8 } else { code };
                let k = if by_index { 77 } else { operand };
                let program = program(&[
                    (0x01, 0, 0, operand),
                    (0x00, 0, 0, a),
                    (code, 0, 1, k),
                    (0x06, 0, 0, 1),
                    (0x06, 0, 0, 0),
                ]);
                assert_eq!(program.unwrap().matches(&[]), holds, "{code:#x} {a} {operand}");
            }
        }
    }

    #[test]
    fn what_is_refused() {
        let ret = (0x06, 0, 0, 0);
        let rows: &[(&[Row], ProgramError)] = &[
            (&[], ProgramError::Empty),
            (&[(0x00, 0, 0, 0)], ProgramError::NoReturn),
            (&[ret, (0x05, 0, 0, 0)], ProgramError::Jump { at: 1 }),
            (&[(0x05, 0, 0, 1), ret], ProgramError::Jump { at: 0 }),
            (&[ret, (0x05, 0, 0, u32::MAX), ret], ProgramError::Jump { at: 1 }),
            (&[(0x15, 0, 1, 0), ret], ProgramError::Jump { at: 0 }),
            (&[(0x15, 1, 0, 0), ret], ProgramError::Jump { at: 0 }),
            (&[(0x02, 0, 0, 16), ret], ProgramError::Memory { at: 0, k: 16 }),
            (&[(0x03, 0, 0, u32::MAX), ret], ProgramError::Memory { at: 0, k: u32::MAX }),
            (&[(0x60, 0, 0, 16), ret], ProgramError::Memory { at: 0, k: 16 }),
            (&[(0x61, 0, 0, 16), ret], ProgramError::Memory { at: 0, k: 16 }),
            (&[(0x34, 0, 0, 0), ret], ProgramError::DivideByZero { at: 0 }),
            (&[(0x94, 0, 0, 0), ret], ProgramError::DivideByZero { at: 0 }),
            (&[(0x0e, 0, 0, 0), ret], ProgramError::Code { at: 0, code: 0x0e }),
            (&[(0x8007, 0, 0, 0), ret], ProgramError::Code { at: 0, code: 0x8007 }),
        ];
        for (instructions, error) in rows {
            assert_eq!(program(instructions), Err(*error), "{instructions:x?}");
        }
        assert_eq!(program(&vec![ret; INSTRUCTIONS_MAX + 1]), Err(ProgramError::TooLong(4097)));
        assert!(program(&vec![ret; INSTRUCTIONS_MAX]).is_ok());
    }

    /// Of all codes exactly those of `linux/bpf_common.h` with a meaning in classic BPF are taken.
    #[test]
    fn forty_nine_codes() {
        let taken = (0..=u16::MAX)
            .filter(|&code| program(&[(code, 0, 0, 1), (0x06, 0, 0, 0), (0x06, 0, 0, 0)]).is_ok())
            .count();
        assert_eq!(taken, 49);
    }
}
