// Everything: a bundle that `python -m export` wrote, and answers about videos from it, without Python.
//
//     #include <gridpool/gridpool.hpp>
//     #include <iostream>
//
//     int main(int, char** words) {
//       try {
//         auto chat = gridpool::VideoChat::open(gridpool::Bundle::open(words[1]));
//         const auto visual = chat.vision().encode(words[2]);  // visual.tokens: [N, D]
//         const auto answer = chat.ask_about(visual, words[3], [](std::string_view text) { std::cout << text << std::flush; });
//         std::cout << "\n" << answer.visual_tokens << " visual tokens\n";
//       } catch (const gridpool::UserError& error) {
//         std::cerr << "error: " << error.what() << "\n";
//         return 2;
//       }
//     }
#pragma once

#include "gridpool/bundle.hpp"
#include "gridpool/chat.hpp"
#include "gridpool/engine.hpp"
#include "gridpool/error.hpp"
#include "gridpool/live.hpp"
#include "gridpool/llm.hpp"
#include "gridpool/preprocess.hpp"
#include "gridpool/prompt.hpp"
#include "gridpool/tokenizer.hpp"
#include "gridpool/video.hpp"
