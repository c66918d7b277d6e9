//! An assembler for BPF: no more of the instruction set than our programs use.
//!
//! Encodings are those of the kernel's `Documentation/bpf/standardization/instruction-set.rst`. What it yields is checked by
//! the kernel's verifier before it runs, so a mistake here is a refusal there.

use super::sys::Map;

/// A register. `R0` has answers, `R1` to `R5` are arguments and lost in a call, `R6` to `R9` stay, and `Stack` is the end of the
/// program's 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    #[expect(dead_code, reason = "no function that we call has five arguments")]
    R5,
    R6,
    R7,
    R8,
    R9,
    Stack,
}

/// How many bytes are loaded or stored.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Size {
    /// Four.
    Word = 0x00,
    /// Eight.
    Double = 0x18,
}

/// What is done with 64 bits.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Op {
    Add = 0x00,
    Sub = 0x10,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Move = 0xb0,
}

/// When a jump is taken.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum If {
    Equal = 0x10,
    NotEqual = 0x50,
    SignedAtLeast = 0x70,
    AtMost = 0xb0,
    SignedAtMost = 0xd0,
}

/// A function of the kernel, by its number in `enum bpf_func_id`.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(crate) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    KtimeNs = 5,
    PidTgid = 14,
    ProbeReadUser = 112,
}

/// A place to jump to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label(usize);

/// A program under construction.
#[derive(Debug, Default)]
pub(crate) struct Asm {
    code: Vec<[u8; 8]>,
    /// Where each label is.
    labels: Vec<usize>,
    /// Which instruction jumps to which label.
    jumps: Vec<(usize, Label)>,
}

const CLASS_LOAD_64: u8 = 0x18;
const CLASS_LOAD: u8 = 0x61;
const CLASS_STORE: u8 = 0x63;
const CLASS_ADD_ATOMIC: u8 = 0xc3;
const CLASS_JUMP: u8 = 0x05;
const CLASS_ALU: u8 = 0x07;
const OF_REGISTER: u8 = 0x08;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

impl Asm {
    fn push(&mut self, code: u8, to: Reg, from: u8, offset: i16, value: i32) {
        let [o0, o1] = offset.to_ne_bytes();
        let [v0, v1, v2, v3] = value.to_ne_bytes();
        self.code.push([code, (from << 4) | to as u8, o0, o1, v0, v1, v2, v3]);
    }

    /// `to = to op value`.
    pub(crate) fn number(&mut self, op: Op, to: Reg, value: i32) {
        self.push(CLASS_ALU | op as u8, to, 0, 0, value);
    }

    /// `to = to op from`.
    pub(crate) fn register(&mut self, op: Op, to: Reg, from: Reg) {
        self.push(CLASS_ALU | OF_REGISTER | op as u8, to, from as u8, 0, 0);
    }

    /// `to = *(from + offset)`.
    pub(crate) fn load(&mut self, size: Size, to: Reg, from: Reg, offset: i16) {
        self.push(CLASS_LOAD | size as u8, to, from as u8, offset, 0);
    }

    /// `*(to + offset) = from`.
    pub(crate) fn store(&mut self, size: Size, to: Reg, offset: i16, from: Reg) {
        self.push(CLASS_STORE | size as u8, to, from as u8, offset, 0);
    }

    /// `*(to + offset) += from`, as one step for all CPUs.
    pub(crate) fn add_atomic(&mut self, size: Size, to: Reg, offset: i16, from: Reg) {
        self.push(CLASS_ADD_ATOMIC | size as u8, to, from as u8, offset, 0);
    }

    /// `to` = the map.
    pub(crate) fn map(&mut self, to: Reg, map: &Map) {
        const FD: u8 = 1;
        self.push(CLASS_LOAD_64, to, FD, 0, map.number());
        self.push(0, Reg::R0, 0, 0, 0);
    }

    /// `to` = the address of the program's own memory, so many bytes below its end.
    pub(crate) fn stack(&mut self, to: Reg, below: i32) {
        self.register(Op::Move, to, Reg::Stack);
        self.number(Op::Add, to, -below);
    }

    /// `R0` = the answer of the kernel's function.
    pub(crate) fn call(&mut self, helper: Helper) {
        self.push(CALL, Reg::R0, 0, 0, helper as i32);
    }

    /// A place that is not known yet.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(0);
        Label(self.labels.len() - 1)
    }

    /// The place is here.
    pub(crate) fn bind(&mut self, label: Label) {
        self.labels[label.0] = self.code.len();
    }

    /// Goes there.
    pub(crate) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(CLASS_JUMP, Reg::R0, 0, 0, 0);
    }

    /// Goes there if the register and the number are so.
    pub(crate) fn jump_if(&mut self, left: Reg, is: If, right: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(CLASS_JUMP | is as u8, left, 0, 0, right);
    }

    /// Goes there if the two registers are so.
    pub(crate) fn jump_if_registers(&mut self, left: Reg, is: If, right: Reg, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(CLASS_JUMP | OF_REGISTER | is as u8, left, right as u8, 0, 0);
    }

    /// Ends the program with zero.
    pub(crate) fn exit(&mut self) {
        self.number(Op::Move, Reg::R0, 0);
        self.push(EXIT, Reg::R0, 0, 0, 0);
    }

    /// The instructions, with the jumps set.
    ///
    /// # Panics
    ///
    /// When a jump goes further than 32,767 instructions, which no program of ours has.
    pub(crate) fn finish(mut self) -> Vec<u64> {
        for (at, label) in &self.jumps {
            let distance = self.labels[label.0].cast_signed() - at.cast_signed() - 1;
            let offset = i16::try_from(distance).expect("a program of a few hundred instructions");
            self.code[*at][2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        self.code.into_iter().map(u64::from_ne_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `llvm-objdump -d` shows the bytes of `if (r1 == 5) r0 = 1; else r0 = *(u64 *)(r1 + 16);`, cut down.
    #[test]
    fn instructions_are_encoded_as_llvm_encodes_them() {
        let mut asm = Asm::default();
        let (other, end) = (asm.label(), asm.label());
        asm.jump_if(Reg::R1, If::NotEqual, 5, other);
        asm.number(Op::Move, Reg::R0, 1);
        asm.jump(end);
        asm.bind(other);
        asm.load(Size::Double, Reg::R0, Reg::R1, 16);
        asm.store(Size::Word, Reg::Stack, -16, Reg::R0);
        asm.register(Op::ShiftRight, Reg::R7, Reg::R2);
        asm.add_atomic(Size::Double, Reg::R9, 8, Reg::R1);
        asm.bind(end);
        asm.call(Helper::KtimeNs);
        asm.exit();
        let bytes: Vec<[u8; 8]> = asm.finish().into_iter().map(u64::to_ne_bytes).collect();
        assert_eq!(
            bytes,
            [
                [0x55, 0x01, 2, 0, 5, 0, 0, 0],
                [0xb7, 0x00, 0, 0, 1, 0, 0, 0],
                [0x05, 0x00, 4, 0, 0, 0, 0, 0],
                [0x79, 0x10, 16, 0, 0, 0, 0, 0],
                [0x63, 0x0a, 0xf0, 0xff, 0, 0, 0, 0],
                [0x7f, 0x27, 0, 0, 0, 0, 0, 0],
                [0xdb, 0x19, 8, 0, 0, 0, 0, 0],
                [0x85, 0x00, 0, 0, 5, 0, 0, 0],
                [0xb7, 0x00, 0, 0, 0, 0, 0, 0],
                [0x95, 0x00, 0, 0, 0, 0, 0, 0],
            ]
        );
    }
}
