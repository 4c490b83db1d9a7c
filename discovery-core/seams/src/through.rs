//! What a stream around another one writes, where it has nothing to add.

/// Makes a `$outer<Io>` with a field `io` write straight through to it.
#[macro_export]
macro_rules! write_through {
    ($outer:ident) => {
        impl<Io: ::tokio::io::AsyncWrite + Unpin> ::tokio::io::AsyncWrite for $outer<Io> {
            fn poll_write(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                octets: &[u8],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                ::std::pin::Pin::new(&mut self.io).poll_write(cx, octets)
            }

            fn poll_flush(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.io).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                slices: &[::std::io::IoSlice<'_>],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                ::std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, slices)
            }

            fn is_write_vectored(&self) -> bool {
                self.io.is_write_vectored()
            }
        }
    };
}

/// Makes a `$outer<Io>`, or one with more parameters, with a field `io` hand down to it what only the bottom of a stream
/// can do.
#[macro_export]
macro_rules! hand_down {
    ($outer:ident $(, $more:ident)*) => {
        impl<Io: $crate::AsyncIo $(, $more: Send + Unpin)*> $crate::AsyncIo for $outer<Io $(, $more)*> {
            fn set_receive_window(&self, octets: u32) -> ::std::io::Result<()> {
                self.io.set_receive_window(octets)
            }

            fn slim(&mut self) {
                self.io.slim();
            }

            fn reset_on_close(&mut self) {
                self.io.reset_on_close();
            }
        }
    };
}
