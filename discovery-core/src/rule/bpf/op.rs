//! Instructions of classic BPF, told apart and checked: what can be wrong with one is found here, before it runs.

use super::{BpfInsn, MEMORY_WORDS, ProgramError};
use crate::mutants;

/// A checked instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Load(Size, u32),
    LoadIndexed(Size, u32),
    LoadImmediate(u32),
    LoadLength,
    LoadMemory(usize),
    IndexImmediate(u32),
    IndexLength,
    IndexMemory(usize),
    /// `4*([k]&0xf)`, the length of an IPv4 header.
    IndexHeaderLength(u32),
    Store(usize),
    StoreIndex(usize),
    Arithmetic(Operation, Operand),
    Negate,
    Jump(usize),
    Branch {
        test: Test,
        operand: Operand,
        yes: usize,
        no: usize,
    },
    Return(Returned),
    ToIndex,
    FromIndex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Word,
    Half,
    Octet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    Constant(u32),
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Or,
    And,
    Xor,
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    AnySet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returned {
    Constant(u32),
    Accumulator,
}

impl Op {
    /// The instruction at `at` of `count`. Codes as in `linux/bpf_common.h`, octal being of no help.
    pub(super) fn new(
        at: usize,
        BpfInsn { code, jt, jf, k }: BpfInsn,
        count: usize,
    ) -> Result<Self, ProgramError> {
        let memory = || match usize::try_from(k) {
            Ok(word) if word < MEMORY_WORDS => Ok(word),
            Ok(_) | Err(_) => Err(ProgramError::Memory { at, k }),
        };
        let inside = |skip: usize| {
            let behind = count - at - 1 + usize::from(mutants::on("bpf-jump-past-the-end"));
            if behind > skip { Ok(skip) } else { Err(ProgramError::Jump { at }) }
        };
        let divisor = |operation| {
            if k == 0 {
                Err(ProgramError::DivideByZero { at })
            } else {
                Ok(Self::Arithmetic(operation, Operand::Constant(k)))
            }
        };
        let with_k = |operation| Self::Arithmetic(operation, Operand::Constant(k));
        let with_x = |operation| Self::Arithmetic(operation, Operand::Index);
        let branch = |test, operand| {
            Ok(Self::Branch { test, operand, yes: inside(jt.into())?, no: inside(jf.into())? })
        };
        Ok(match code {
            0x20 => Self::Load(Size::Word, k),
            0x28 => Self::Load(Size::Half, k),
            0x30 => Self::Load(Size::Octet, k),
            0x40 => Self::LoadIndexed(Size::Word, k),
            0x48 => Self::LoadIndexed(Size::Half, k),
            0x50 => Self::LoadIndexed(Size::Octet, k),
            0x00 => Self::LoadImmediate(k),
            0x80 => Self::LoadLength,
            0x60 => Self::LoadMemory(memory()?),
            0x01 => Self::IndexImmediate(k),
            0x81 => Self::IndexLength,
            0x61 => Self::IndexMemory(memory()?),
            0xb1 => Self::IndexHeaderLength(k),
            0x02 => Self::Store(memory()?),
            0x03 => Self::StoreIndex(memory()?),
            0x04 => with_k(Operation::Add),
            0x0c => with_x(Operation::Add),
            0x14 => with_k(Operation::Subtract),
            0x1c => with_x(Operation::Subtract),
            0x24 => with_k(Operation::Multiply),
            0x2c => with_x(Operation::Multiply),
            0x34 => divisor(Operation::Divide)?,
            0x3c => with_x(Operation::Divide),
            0x44 => with_k(Operation::Or),
            0x4c => with_x(Operation::Or),
            0x54 => with_k(Operation::And),
            0x5c => with_x(Operation::And),
            0x64 => with_k(Operation::ShiftLeft),
            0x6c => with_x(Operation::ShiftLeft),
            0x74 => with_k(Operation::ShiftRight),
            0x7c => with_x(Operation::ShiftRight),
            0x84 => Self::Negate,
            0x94 => divisor(Operation::Modulo)?,
            0x9c => with_x(Operation::Modulo),
            0xa4 => with_k(Operation::Xor),
            0xac => with_x(Operation::Xor),
            // As a signed number it would go backwards; as an unsigned one it leads outside.
            0x05 => Self::Jump(inside(usize::try_from(k).unwrap_or(usize::MAX))?),
            0x15 => branch(Test::Equal, Operand::Constant(k))?,
            0x1d => branch(Test::Equal, Operand::Index)?,
            0x25 => branch(Test::Greater, Operand::Constant(k))?,
            0x2d => branch(Test::Greater, Operand::Index)?,
            0x35 => branch(Test::GreaterOrEqual, Operand::Constant(k))?,
            0x3d => branch(Test::GreaterOrEqual, Operand::Index)?,
            0x45 => branch(Test::AnySet, Operand::Constant(k))?,
            0x4d => branch(Test::AnySet, Operand::Index)?,
            0x06 => Self::Return(Returned::Constant(k)),
            0x16 => Self::Return(Returned::Accumulator),
            0x07 => Self::ToIndex,
            0x87 => Self::FromIndex,
            _ => return Err(ProgramError::Code { at, code }),
        })
    }
}

impl Operand {
    pub(super) fn value(self, x: u32) -> u32 {
        match self {
            Self::Constant(k) => k,
            Self::Index => x,
        }
    }
}

impl Operation {
    pub(super) fn of(self, a: u32, b: u32) -> Option<u32> {
        Some(match self {
            Self::Add => a.wrapping_add(b),
            Self::Subtract => a.wrapping_sub(b),
            Self::Multiply => a.wrapping_mul(b),
            Self::Divide => a.checked_div(b)?,
            Self::Modulo => a.checked_rem(b)?,
            Self::Or => a | b,
            Self::And => a & b,
            Self::Xor => a ^ b,
            Self::ShiftLeft => a.checked_shl(b).unwrap_or(0),
            Self::ShiftRight => a.checked_shr(b).unwrap_or(0),
        })
    }
}

impl Test {
    pub(super) fn holds(self, a: u32, b: u32) -> bool {
        match self {
            Self::Equal => a == b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
            Self::AnySet => a & b != 0,
        }
    }
}
